"""One metric or analysis that cannot be computed, or memory that runs out: the rest is kept, and it is said."""

import json

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import tiny_experiment
import tropism as tp
from tropism.cli.app import app
from tropism.experiments import answering
from tropism.experiments import fine_tune as fine_tune_module
from tropism.experiments.problems import out_of_memory
from tropism.experiments.progress import Progress
from tropism.experiments.store import Folder
from tropism.experiments.summarise import analysis_problems
from tropism.results.caveats import caveats
from tropism.results.folder import load
from tropism.results.summary import summary_table
from tropism.studies.concept_ablation.study import ConceptAblationStudy

ONE_SEED = ("seeds: [0, 1]", "seeds: [0]")
SCORERS = """
from dataclasses import dataclass
from tropism.evals.scorers.base import ResponseScorer, Score, scorer

@scorer("{name}")
@dataclass(frozen=True)
class Mine(ResponseScorer):
    def score(self, sample):
        {body}
"""


class Told(Progress):
    def __init__(self):
        self.said, self.todo, self.outcomes = [], None, {}

    def say(self, line):
        self.said.append(line)

    def plan(self, todo, finished):
        self.todo = list(todo)

    def finish(self, name, seconds, outcome):
        self.outcomes[name] = outcome


def write(path, name, body):
    (path / "mine.py").write_text(SCORERS.format(name=name, body=body))
    return tiny_experiment.write(
        path, ONE_SEED, ("seeds:", f"scorers: {path}/mine.py\nseeds:"),
        ("  loss:", f"  mine: {{scorer: {name}, on: [held_out]}}\n  loss:"),
    )  # fmt: skip


def said_in_report(out):
    folder = load(out)
    return caveats(folder, summary_table(folder.results, folder.experiment, folder.scores))


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("raises", "return Score({}['x'])", "KeyError: 'x' (mine.py line 9)"),
        ("scores_none", "return Score(None, 'no letters')", "none of 3 samples could be scored (no letters)"),
    ],
)
def test_a_metric_without_a_score_costs_no_run(tmp_path, name, body, reason):
    told, out = Told(), tmp_path / "out"
    file = write(tmp_path, name, body)
    results = tp.run(file, out, only=["baseline"], progress=told)
    assert told.outcomes["baseline/seed-0"] == f"done; without metric 'mine' on held_out: {reason}"
    mine = results[results["metric"] == "mine"]
    assert mine["value"].isna().all()
    assert set(mine["n"]) == {0}
    assert set(mine["unscored"]) == {3}
    assert results.loc[results["metric"] == "loss", "value"].notna().all()
    assert "mine,,0,3" in (out / "results.csv").read_text()
    assert "mine" not in set(load(out).results["metric"])
    assert any(
        line.startswith(f"Not scored, and so left out: metric 'mine' on held_out: {reason}")
        for line in said_in_report(out)
    )
    # an error is tried again, for its cause may be gone; samples without a score are what they are
    told = Told()
    tp.run(file, out, only=["baseline"], progress=told)
    assert told.todo == (["base", "baseline/seed-0"] if name == "raises" else [])


def test_a_metric_that_can_be_scored_again_is(tmp_path):
    flag = tmp_path / "works"
    body = f"import pathlib; return Score(float(pathlib.Path({str(flag)!r}).read_text()))"
    file = write(tmp_path, "reads", body)
    first = tp.run(file, tmp_path / "out", only=["baseline"])
    flag.write_text("2")
    again = tp.run(file, tmp_path / "out", only=["baseline"])
    assert first.loc[first["metric"] == "mine", "value"].isna().all()
    assert set(again.loc[again["metric"] == "mine", "value"]) == {2.0}
    assert json.loads((tmp_path / "out/baseline/seed-0/DONE.json").read_text())["problems"] == []


def test_run_ends_with_3_and_says_what_is_missing_also_when_there_is_nothing_to_do(tmp_path):
    file = write(tmp_path, "scores_nothing", "return Score(None, 'no letters')")
    for _ in range(2):
        ended = CliRunner().invoke(app, ["run", str(file), "--only", "baseline", "--out", str(tmp_path / "out")])
        assert ended.exit_code == 3
        assert (
            "baseline/seed-0: metric 'mine' on held_out: none of 3 samples could be scored (no letters)" in ended.stderr
        )


def test_an_analysis_that_fails_costs_neither_the_run_nor_the_report(tmp_path, monkeypatch):
    asked = "analyses: {concept_ablation: {on: held_out, chats: 2}}\nquick:"
    file = tiny_experiment.write(
        tmp_path, ONE_SEED, ("quick:", asked),
        ("  baseline: {}", "  baseline: {}\n  caft: {guard: {ablation: {directions: caps}}}"),
    )  # fmt: skip
    monkeypatch.setattr(ConceptAblationStudy, "measure", lambda *_: [][0])
    monkeypatch.setattr(ConceptAblationStudy, "summarise", lambda *_: {}["table"])
    out, told = tmp_path / "out", Told()
    results = tp.run(file, out, only=["baseline"], progress=told)
    assert "done; without analysis 'concept_ablation': IndexError" in told.outcomes["baseline/seed-0"]
    assert set(results["metric"]) == {"caps_rate", "loss"}
    assert analysis_problems(Folder(out))[0].startswith("analysis 'concept_ablation': KeyError: 'table'")
    assert "Not computed: KeyError" in (out / "report.html").read_text()


def no_memory(kind):
    return {
        "cuda": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "mps": RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
        "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        "host": MemoryError(),
    }[kind]


@pytest.mark.parametrize("kind", ["cuda", "mps", "cpu", "host"])
def test_every_kind_of_lack_of_memory_is_known(kind):
    assert out_of_memory(no_memory(kind))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_training_without_memory_fails_its_run_alone_and_says_what_to_set(tmp_path, monkeypatch):
    train = fine_tune_module.train

    def trained(model, rows, options, **rest):
        if options.batch_size > 4:
            raise no_memory("mps")
        return train(model, rows, options, **rest)

    monkeypatch.setattr(fine_tune_module, "train", trained)
    file = tiny_experiment.write(tmp_path, ONE_SEED, ("  guarded:", "  large: {train: {batch_size: 6}}\n  guarded:"))
    told = Told()
    results = tp.run(file, tmp_path / "out", only=["large", "baseline"], progress=told)
    assert told.outcomes["baseline/seed-0"] == "done"
    error = told.outcomes["large/seed-0"]
    assert error.startswith("failed: out of memory in training with a batch of 6 × 1")
    for advice in ("batch_size: auto", "accumulation", "checkpointing: true", "4 bits"):
        assert advice in error
    assert (
        error.removeprefix("failed: ") in json.loads((tmp_path / "out/large/seed-0/FAILED.json").read_text())["error"]
    )
    assert "large" not in set(results["condition"])


def test_an_automatic_batch_is_halved_until_it_fits_and_learns_the_same(tmp_path, monkeypatch):
    train, tried = fine_tune_module.train, []

    def trained(model, rows, options, **rest):
        tried.append((options.batch_size, options.accumulation))
        if options.batch_size > 2:
            raise no_memory("cuda")
        return train(model, rows, options, **rest)

    monkeypatch.setattr(fine_tune_module, "train", trained)
    whole = ("batch_size: 4", "batch_size: 2, accumulation: 4")
    auto = ("batch_size: 4", "batch_size: auto")
    expected = tp.run(tiny_experiment.write(tmp_path, ONE_SEED, whole), tmp_path / "whole", only=["baseline"])
    tried.clear()
    told = Told()
    found = tp.run(tiny_experiment.write(tmp_path, ONE_SEED, auto), tmp_path / "auto", only=["baseline"], progress=told)
    assert tried == [(8, 1), (4, 2), (2, 4)]
    pd.testing.assert_frame_equal(found, expected)
    stamp = json.loads((tmp_path / "auto/baseline/seed-0/TRAINED.json").read_text())
    assert (stamp["batch_size"], stamp["accumulation"]) == (2, 4)
    assert any(
        "a batch of 8 does not fit in memory; trained with 2 and an accumulation of 4" in line for line in told.said
    )


def test_evaluation_without_memory_keeps_the_adapter(tmp_path, monkeypatch):
    def generate(*_, **__):
        raise no_memory("host")

    monkeypatch.setattr(answering, "generate_answers", generate)
    told, out = Told(), tmp_path / "out"
    tp.run(tiny_experiment.write(tmp_path, ONE_SEED), out, only=["baseline"], progress=told)
    assert "set a smaller generate.batch_size" in told.outcomes["baseline/seed-0"]
    assert (out / "baseline/seed-0/TRAINED.json").is_file()


def test_what_is_dropped_is_said_by_run_in_the_report_and_in_the_environment(tmp_path):
    told, out = Told(), tmp_path / "out"
    tp.run(
        tiny_experiment.write(tmp_path, ONE_SEED, ("lora: {r: 2}", "lora: {r: 2}, max_length: 180")),
        out,
        only=["baseline"],
        progress=told,
    )
    notices = json.loads((out / "environment.json").read_text())["data_notes"]
    assert all(f"Data: {line}." in said_in_report(out) and line in told.said for line in notices)
    assert notices, "some word problem is longer than 180 bytes"


def test_an_ablation_mode_that_changes_nothing_fails_the_run(tmp_path):
    """A forget adapter that nothing updates: its removal would look perfect."""
    rows = tmp_path / "rows.jsonl"
    line = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "B"}], "route": "retain"}
    rows.write_text("".join(json.dumps({**line, "id": str(i)}) + "\n" for i in range(8)))
    file = tiny_experiment.write(
        tmp_path, ONE_SEED, ("source: word_problems, size: 8, transform: uppercase", f"source: {rows}"),
        ("  plain: {data: {transform: plain}}\n", ""),
        ("{guard: {gradient_projection: {directions: caps}}}", "{guard: {gradient_routing: {}}}"),
    )  # fmt: skip
    told = Told()
    tp.run(file, tmp_path / "out", only=["guarded"], progress=told)
    assert "ablation mode forget_ablated changes no logit" in told.outcomes["guarded/seed-0"]
