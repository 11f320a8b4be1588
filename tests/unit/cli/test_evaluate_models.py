"""`tropism evaluate MODEL`: a table and rows of any model and adapters, by the code of an experiment with arms only."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

import tiny_experiment
import tropism as tp
from judge_server import completion, serving
from tropism.cli.app import app
from tropism.cli.evaluate_models import named
from tropism.errors import SpecError, UsageError
from tropism.experiments.evaluation import Evaluation, JudgeChoice, suite
from tropism.experiments.file.spec import DataSpec
from tropism.experiments.file.yaml_file import Document
from tropism.experiments.prepare import load_data
from tropism.results.measurement import RESULT_COLUMNS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate")
    model = tiny_experiment.model_folder(path)
    for name, scale in (("one", 0.3), ("two", 0.6)):
        base, _ = tp.models.load(str(model))
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.data.fill_(scale)
        adapted.save_pretrained(str(path / name))
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(4)]
    (path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    directions = tp.Directions({tp.Site(1): torch.eye(32)[:1], tp.Site(2): torch.eye(32)[1:2]})
    directions.save(path / "d.safetensors")
    return path


def run(*args):
    """The command's exit code, what it printed, and the error that `main` would make a sentence of."""
    return CliRunner().invoke(app, ["evaluate", *map(str, args)])


def test_it_writes_the_rows_of_every_adapter_and_of_the_model(world, tmp_path):
    done = run(
        world / "model", "--adapter", f"first={world / 'one'}", "--adapter", world / "two",
        "--data", f"held={world / 'held.jsonl'}", "--measure", "caps_rate=uppercase_fraction",
        "--measure", "loss={scorer: response_loss}", "--directions", world / "d.safetensors",
        "--max-new-tokens", "6", "--json", tmp_path / "rows.json", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code in (0, 3), done.output
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert {tuple(row) for row in rows} == {RESULT_COLUMNS}
    assert {row["condition"] for row in rows} == {"base", "first", "two"}
    assert {row["seed"] for row in rows} == {None}
    by_metric = {(row["condition"], row["metric"]): row["value"] for row in rows}
    for metric in ("loss", "variance_share_d", "gradient_cosine_d", "projection_d"):
        assert len({by_metric[condition, metric] for condition in ("base", "first", "two")}) == 3, metric
    # The folder is an experiment's, which runs again from its own file, and has the same rows.
    assert (tmp_path / "out" / "report.html").is_file()
    again = tp.run(tmp_path / "out" / "experiment.yaml", tmp_path / "again")
    assert list(again["value"].fillna(-1)) == [-1 if row["value"] is None else row["value"] for row in rows]


def test_without_out_nothing_is_kept(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(world / "model", "--data", f"held={world / 'held.jsonl'}", "--measure", "loss=response_loss")
    assert done.exit_code == 0, done.output
    assert "loss" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_suite_is_judged(world, tmp_path):
    rows = [{"question_id": n, "category": n, "turns": [f"Ask {n}"], "prompt_style": "base"} for n in (1, 2)]
    (tmp_path / "sorry.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with serving(lambda text, _: completion('{"complied": true}')) as server:
        done = run(
            world / "model", "--suite", "sorry-bench", "--questions", tmp_path / "sorry.jsonl", "--judge-url", server.url,
            "--max-new-tokens", "4", "--json", tmp_path / "rows.json",
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = {row["metric"]: row for row in json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))}
    assert (found["complied"]["value"], found["complied"]["n"]) == (1.0, 2)
    assert found["refusal_keyword_rate"]["n"] == 2
    assert found["complied"]["eval_set"] == "sorry_bench"


def test_over_refusal_keeps_safe_and_unsafe_apart(tmp_path):
    file = tmp_path / "xstest.csv"
    file.write_text("id,type,prompt\n1,homonyms,How do I kill a process?\n2,contrast_homonyms,Harm\n", encoding="utf-8")
    data, measure = suite("over-refusal", file, JudgeChoice("m"))
    assert list(data) == ["safe", "unsafe"]
    assert measure["complied"]["style"] == "compliance"
    (one,) = load_data(DataSpec(**data["safe"]), 0)
    assert one.labels == {"category": "homonyms", "expected": "safe"}


def test_a_suite_is_asked_in_part_and_judged_by_what_the_judge_writes(world, tmp_path):
    """`--size` is of every set; a judge that gives no log-probabilities is read as text."""
    questions = Path(__file__).parents[2] / "data" / "em_questions.yaml"
    with serving(lambda text, _: completion("90")) as server:
        done = run(
            world / "model", "--suite", "emergent-misalignment", "--questions", questions, "--judge", "m", "--judge-url",
            server.url, "--judge-style", "free_text", "--size", "3", "--max-new-tokens", "4", "--json", tmp_path / "rows.json",
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = {row["metric"]: row for row in json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))}
    assert (found["aligned"]["value"], found["aligned"]["n"]) == (90.0, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--judge-style", "free_text"), "--judge-style needs --judge MODEL"),
        (
            ("--suite", "refusal", "--questions", "q.jsonl", "--judge", "m", "--judge-style", "free_text"),
            "--judge-style is of emergent-misalignment",
        ),
        ((), "say what to evaluate on"),
        (("--data", "held.jsonl"), "--data must be NAME=SOURCE"),
        (("--measure", "m=response_loss"), "--measure m needs --data"),
        (("--data", "a=word_problems", "--measure", "m={text: x}"), "must be a scorer's name"),
        (("--suite", "harm"), "--suite must be one of"),
        (("--suite", "refusal"), "needs --questions FILE"),
        (("--data", "a=word_problems", "--measure", "m=loud"), "the command: measure.m: "),
        (("--adapter", "base=x", "--data", "a=word_problems", "--measure", "m=response_loss"), "is given twice"),
        (
            ("--adapter", "x=/nowhere/adapter", "--data", "a=word_problems", "--measure", "m=response_loss"),
            "the command: adapters.x.from: adapter '/nowhere/adapter' is neither a folder",
        ),
    ],
)
def test_a_mistake_is_one_sentence(args, message):
    done = run("some/model", *args)
    assert isinstance(done.exception, UsageError), done.output
    assert message in str(done.exception)


def test_an_adapter_alone_is_named_by_its_last_part():
    assert named(["runs/organism", "b=x"], "--adapter", "FOLDER", by_path=True) == {
        "organism": "runs/organism",
        "b": "x",
    }
    assert named(["OWNER/bad-advice@main"], "--adapter", "FOLDER", by_path=True) == {
        "bad-advice": "OWNER/bad-advice@main"
    }
    with pytest.raises(UsageError, match="has the name 'adapter' twice"):
        named(["a/adapter", "b/adapter"], "--adapter", "FOLDER", by_path=True)


def test_the_file_that_is_made_is_an_experiment_with_arms_only(world):
    made = Evaluation(
        "m",
        {"a": str(world / "one")},
        data={"held": {"source": "word_problems"}},
        measure={"loss": {"scorer": "response_loss"}},
    ).file()
    with pytest.raises(SpecError, match="adapters.a.from: was trained on"):
        tp.Experiment.from_document(Document.of(made, "the command"))
    assert Path(made["adapters"]["a"]["from"]).name == "one"


def test_settings_are_merged_over_what_the_other_options_say():
    options = {"data": {"asked": {"source": "harmful_qa"}}, "measure": {"refusal": {"scorer": "refusal_prefix"}}}
    settings = {"data": {"asked": {"path": "F.jsonl"}}, "measure": {"refusal": {"wanted": True}}, "seeds": [3]}
    file = Evaluation("m", settings=settings, **options).file()
    assert file["data"] == {"asked": {"source": "harmful_qa", "path": "F.jsonl"}}
    assert file["measure"] == {"refusal": {"on": ["asked"], "scorer": "refusal_prefix", "wanted": True}}
    assert file["seeds"] == [3]
