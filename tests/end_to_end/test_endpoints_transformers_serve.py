"""Against a real server of another project: `transformers serve` with adapters merged into the model."""

import json
import os
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.optim import AdamW
from transformers.utils.import_utils import is_serve_available

import tiny
import tiny_experiment
from command import tropism
from judge_server import completion, serving
from naive_constraint import lora, train, trainable
from tropism import models
from tropism.data.generate_options import ServedOptions
from tropism.data.generation import GenerateOptions, generate_answers
from tropism.evals.endpoints import TaskPrompt, evaluate_endpoints, summary
from tropism.evals.judges.endpoint import Endpoint, Retries
from tropism.experiments.answering import answering
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.subject import Subject, Trained

pytest.importorskip("openai")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="transformers serve needs transformers[serving]"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Three conditions' models, merged, behind one server; the request names the model."""
    tmp_path = tmp_path_factory.mktemp("served")
    folders = {}
    for name, steps in (("base", 0), ("vanilla", 4), ("orthogonal", 8)):
        model = lora(seed=2)
        train(model, AdamW(trainable(model), lr=1e-1), steps=steps)
        model.merge_and_unload().save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
        folders[name] = str(tmp_path / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"], stdout=log, stderr=log, env=dict(os.environ)
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {(tmp_path / 'log').read_text()[-600:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", folders
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def judge(text, _):
    """Whatever has a letter e in it did what was asked."""
    answer = text.rsplit("[The Start of Assistant", 1)[-1]
    return completion(json.dumps({"complied": "e" in answer}))


def test_the_command_asks_three_endpoints_and_has_them_judged(server, tmp_path):
    url, folders = server
    questions = tmp_path / "question.jsonl"
    rows = [
        {"question_id": i, "category": str(i), "turns": [f"request {i}"], "prompt_style": "base"} for i in range(1, 4)
    ]
    questions.write_text("\n".join(json.dumps(row) for row in rows))
    named = [part for name in folders for part in ("--endpoint", f"{name}={url}", "--model", f"{name}={folders[name]}")]
    with serving(judge, ["j"]) as judging:
        command_line = [
            *named, "--judge", judging.url, "--suite", "sorry-bench", "--questions", questions,
            "--max-tokens", 8, "--concurrency", 1, "--timeout", 60,
        ]  # fmt: skip
        done = tropism("evaluate", *command_line, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        asked = len(judging.bodies)
        again = tropism("evaluate", *command_line, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert len(judging.bodies) == asked  # what was judged is kept
    folder = tmp_path / "evaluations" / "sorry-bench"
    rates = pd.read_csv(folder / "rates.csv").set_index("condition")
    assert list(rates.index) == ["base", "vanilla", "orthogonal"]
    assert (rates["n"] + rates["unscored"] == 3).all()
    assert rates["n"].sum() == asked > 0
    judgments = [json.loads(line) for line in (folder / "judgments.jsonl").read_text().splitlines()]
    assert {row["model"] for row in judgments} == set(folders)


def test_a_server_that_lists_another_set_of_models_is_named_with_its_way_out(server, tmp_path):
    """`transformers serve` lists the hub's cache, whatever it was started with."""
    url, _ = server
    (tmp_path / "question.jsonl").write_text(
        '{"question_id": 1, "category": "1", "turns": ["a"], "prompt_style": "base"}'
    )
    done = tropism(
        "evaluate", "--endpoint", f"base={url}", "--suite", "sorry-bench", "--questions", "question.jsonl", cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert "--model base=MODEL" in done.stderr


def test_two_conditions_behind_transformers_serve(server, tmp_path):
    url, folders = server
    prompts = [TaskPrompt(str(i), "1", ({"role": "user", "content": f"prompt {i}"},)) for i in range(3)]
    quick = Retries(attempts=2, budget=10, first_wait=0.1, longest_wait=1.0)
    endpoints = {
        name: Endpoint(folder, base_url=url, timeout=60.0, concurrency=1, retries=quick)
        for name, folder in folders.items()
        if name != "base"
    }
    table = evaluate_endpoints(prompts, endpoints, tmp_path / "out", max_tokens=8)
    rates = summary(table)
    assert list(rates["condition"]) == ["vanilla", "orthogonal"]
    assert table["response"].notna().sum() + table["refusal_unscored"].str.startswith("no answer").sum() == 6
    assert table["response"].notna().any()
    said = {name: list(rows["response"]) for name, rows in table.groupby("condition")}
    assert all(any(texts) for texts in said.values())
    assert said["vanilla"] != said["orthogonal"]  # each request reached its own model
    again = evaluate_endpoints(prompts, endpoints, tmp_path / "out", max_tokens=8)
    kept = table["response"].notna()
    assert (again["response"][kept] == table["response"][kept]).all()


@pytest.mark.real_model
def test_merged_unmerged_and_served_answers_agree_on_smollm2(server, tmp_path):
    """The `generate` back-end `endpoint` with `adapters: folder`: the server loads the merged model by its path."""
    model, tokenizer = models.load(models.SMOLLM2, device="cpu", dtype="float32")
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    prompts = [({"role": "user", "content": text},) for text in ("What is two and two?", "Name a colour.")]
    options = GenerateOptions(max_new_tokens=12, dtype="float32")
    unmerged = [one.text for one in generate_answers(adapted.eval(), tokenizer, prompts, options)]
    fresh = lambda: models.load(models.SMOLLM2, device="cpu", dtype="float32")[0]  # noqa: E731
    subject = Subject(Trained(tmp_path / "adapter", False), fresh, tokenizer)
    found = {}
    for by in ("transformers", "endpoint"):
        served = ServedOptions(base_url=server[0], adapters="folder", timeout=200) if by == "endpoint" else None
        generate = options.model_copy(update={"backend": by, "served": served})
        experiment = Experiment.load(tiny_experiment.write(tmp_path)).model_copy(update={"generate": generate})
        with answering(experiment, subject, "full") as answer:
            found[by] = [one.text for one in answer(prompts, 0, lambda *_: None)]
    assert found["endpoint"] == found["transformers"] == unmerged
    plain = [one.text for one in generate_answers(fresh().eval(), tokenizer, prompts, options)]
    assert plain != unmerged
