"""`tropism pressure`: its tables, its resumption, and one sentence for each mistake."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import tiny
import tropism as tp
from gradient_cases import chats
from tropism.cli.pressure import pressure_app
from tropism.errors import UsageError


@pytest.fixture
def here(tmp_path):
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    lines = [json.dumps({"id": f"q{i}", "messages": chat}) for i, chat in enumerate(chats())]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    tp.Directions({tp.Site(1): v, tp.Site(2): v}).save(tmp_path / "d.safetensors")
    return tmp_path


def run(here, command, *arguments):
    given = [
        command,
        "--model",
        here / "model",
        "--chats",
        here / "chats.jsonl",
        "--device",
        "cpu",
        *arguments,
    ]
    return CliRunner().invoke(pressure_app, [str(one) for one in given])


def measure(here, *arguments):
    return run(
        here,
        "measure",
        "--directions",
        here / "d.safetensors",
        "--out",
        here / "out",
        "--random",
        19,
        *arguments,
    )


def test_measure_writes_what_the_library_computes(here):
    done = measure(here, "--condition", "neutral=", "--condition", "loud=Be loud.")
    assert done.exit_code == 0, done.output
    assert "Pressure, 8 chats; p against 19 random directions" in done.output
    table = pd.read_csv(here / "out" / "pressure.csv")
    assert list(table.columns) == ["chat", "site", "pressure", "cosine", "gradient_norm", "loss", "condition"]
    model, tokenizer = tp.models.load(str(here / "model"), device="cpu")
    loud = [[{"role": "system", "content": "Be loud."}, *chat] for chat in chats()]
    cache = tp.collect_gradients(model, tokenizer, loud, [tp.Site(1)])
    v = tp.Directions.load(here / "d.safetensors").vectors[tp.Site(1)]
    wanted = tp.pressure(cache, tp.Directions({tp.Site(1): v})).pressure
    found = table[(table.condition == "loud") & (table.site == "resid_post.1")].pressure
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-3)
    random = pd.read_csv(here / "out" / "random.csv")
    assert set(random.group) == {"select", "report"}
    assert len(random) == 2 * 2 * 2 * 20
    shown = pd.read_csv(here / "out" / "conditions.csv")
    assert "Be loud." in shown.text[1]


def test_a_second_call_resumes_and_another_model_is_refused(here):
    assert measure(here).exit_code == 0
    before = (here / "out" / "pressure.csv").read_bytes()
    assert measure(here).exit_code == 0
    assert (here / "out" / "pressure.csv").read_bytes() == before
    tiny.model(seed=1).save_pretrained(here / "model")
    refused = measure(here)
    assert isinstance(refused.exception, UsageError)
    assert "made with another model" in str(refused.exception)


def test_calibrate_names_the_placebo(here):
    (here / "candidates.txt").write_text("Be brief.\n\nZz.\n", encoding="utf-8")
    done = run(
        here,
        "calibrate",
        "--inoculation",
        "Be loud.",
        "--candidates",
        here / "candidates.txt",
        "--out",
        here / "c.csv",
    )
    assert done.exit_code == 0, done.output
    table = pd.read_csv(here / "c.csv")
    assert len(table) == 3
    assert f"placebo: {table.prompt[1]}" in done.output


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("measure", ["--condition", "neutral"], r"--condition must be NAME='system prompt'"),
        ("measure", ["--condition", "a=x", "--condition", "a=y"], "--condition 'a' is given twice"),
        ("measure", ["--condition", "a=x", "--condition", "b=x"], "render to the same tokens"),
        ("measure", ["--transform", "mixture"], "--transform must be uppercase or plain"),
        (
            "measure",
            ["--adapter", "nowhere"],
            "is neither a folder nor a hub name OWNER",
        ),
        ("measure", ["--kind", "covariance"], "need the activations' covariance"),
        ("calibrate", ["--inoculation", "x"], "give candidate prompts"),
        ("calibrate", ["--inoculation", "x", "--candidates", "nowhere.txt"], "no such file: nowhere.txt"),
    ],
)
def test_mistakes_are_one_sentence(here, command, arguments, message):
    done = measure(here, *arguments) if command == "measure" else run(here, command, *arguments)
    assert isinstance(done.exception, UsageError), done.output

    assert re.search(message, str(done.exception))


def test_help_imports_neither_torch_nor_pandas():
    code = "import sys, tropism.cli.pressure; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
