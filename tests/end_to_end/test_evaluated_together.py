"""Two processes evaluate a run as one does: the same responses, the same scores to rounding, what fails in the same words."""

import json
import signal

import pytest

import forked
import tiny_experiment
import tropism as tp
from tropism.data.sources.word_problems import word_problems
from tropism.experiments import evaluated_together, processes
from tropism.experiments.progress import Progress

pytestmark = pytest.mark.slow

SCORERS = '''
from dataclasses import dataclass
from typing import ClassVar

from tropism.evals.scorers.base import ModelScorer, Score, scorer


@scorer("first_weight")
@dataclass(frozen=True)
class FirstWeight(ModelScorer):
    """The model's first weight; one prompt has none."""

    fails: bool = False

    def score_all(self, model, tokenizer, samples):
        if self.fails and any(sample.prompt[-1]["content"] == QUESTION for sample in samples):
            raise ValueError("one prompt has no weight")
        return [Score(float(next(model.parameters()).detach().flatten()[0])) for _ in samples]


@scorer("order")
@dataclass(frozen=True)
class Order(ModelScorer):
    """As a judge it runs no model; its scores show that it was asked of all samples at once."""

    runs: ClassVar[str] = "nothing"
    text: ClassVar[str] = "generated"

    def score_all(self, model, tokenizer, samples):
        return [Score(float(place)) for place in range(len(samples))]
'''
MEASURE = """  caps_rate: {scorer: uppercase_fraction, on: [held_out, other]}
  loss: {scorer: response_loss, on: [held_out, other]}
  fluent: {scorer: base_perplexity, on: [held_out]}
  moved: {scorer: kl_to_base, on: [other]}
  weight: {scorer: first_weight, on: [held_out]}
  fails: {scorer: first_weight, fails: true, on: [held_out]}
  order: {scorer: order, on: [held_out, other]}
"""


def write(path, generate):
    path.mkdir(parents=True, exist_ok=True)
    one_of_the_second_process = word_problems(7, split="test")[3].prompt[-1]["content"]
    (path / "scorers.py").write_text(SCORERS.replace("QUESTION", repr(one_of_the_second_process)))
    return tiny_experiment.write(
        path,
        ("seeds: [0, 1]", f"scorers: {path / 'scorers.py'}\nseeds: [0]"),
        ("size: 3, split: test}", "size: 7, split: test}\n  other: {source: word_problems, size: 5, seed: 3}"),
        ("max_new_tokens: 3,", f"max_new_tokens: 3, batch_size: 2, {generate}"),
        ("  plain: {data: {transform: plain}}\n", ""),
        (
            "  guarded: {guard: {gradient_projection: {directions: caps}}}\n",
            "  routed: {guard: {gradient_routing: {}}, data: {transform: {mixture: {clean: 0.5}}}}\n",
        ),
        (
            "  caps_rate: {scorer: uppercase_fraction, on: [held_out], unwanted: true}\n"
            "  loss: {scorer: response_loss, on: [held_out]}\n",
            MEASURE,
        ),
    )


def rows(out):
    return {
        str(file.parent.relative_to(out)): [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted(out.glob("**/responses.jsonl"))
    }


def again(out):
    """Make every run one that is to be evaluated again, from the adapter that it has."""
    for file in [*out.glob("**/DONE.json"), *out.glob("**/responses.jsonl")]:
        file.unlink()


class Heard(Progress):
    def __init__(self):
        self.phases = []

    def phase(self, what, done, of, values=None):
        self.phases.append(what)


@pytest.mark.parametrize("generate", ["", "temperature: 1.0, samples: 3,"], ids=["greedy", "sampled"])
def test_two_processes_give_the_rows_of_one(tmp_path, monkeypatch, generate):
    file, out = write(tmp_path, generate), tmp_path / "out"
    one = tp.run(file, out)
    alone = rows(out)
    said = {run: json.loads((out / run / "DONE.json").read_text()) for run in alone}
    again(out)
    started = []
    monkeypatch.setattr(processes, "_start", lambda *given: started.append(given) or forked.one_of_several(*given))
    monkeypatch.setattr(evaluated_together, "_processes", lambda *_: 2)
    heard = Heard()
    two = tp.run(file, out, progress=heard)
    shared = rows(out)
    assert len(alone) == 3
    assert len(started) == 2 * len(alone)
    assert not [what for what in heard.phases if what.startswith("training")]
    assert {"scoring loss on other", "answering held_out" + (", sample 1" if generate else "")} <= set(heard.phases)
    compared = set()
    for run, expected in alone.items():
        assert len(shared[run]) == len(expected)
        assert len({row["mode"] for row in expected}) == (3 if run.startswith("routed") else 1)
        for ours, theirs in zip(expected, shared[run], strict=True):
            scores, others = ours.pop("scores"), theirs.pop("scores")
            assert ours == theirs
            assert scores.keys() == others.keys()
            for metric, score in scores.items():
                assert others[metric]["unscored"] == score["unscored"]
                if score["value"] is not None:
                    assert others[metric]["value"] == pytest.approx(score["value"], rel=1e-5, abs=1e-6)
                    compared.add(metric)
        problems = json.loads((out / run / "DONE.json").read_text())["problems"]
        assert problems == said[run]["problems"]
        assert "ValueError: one prompt has no weight (scorers.py line" in json.dumps(problems)
        assert not (out / run / "evaluator").exists()
    assert compared == {"caps_rate", "loss", "fluent", "moved", "weight", "order"}
    assert one.drop(columns="value").equals(two.drop(columns="value"))


def test_a_process_that_dies_fails_the_run_with_a_sentence_and_the_next_command_goes_on(tmp_path, monkeypatch):
    file = tiny_experiment.write(
        tmp_path, ("seeds: [0, 1]", "seeds: [0]"), ("max_new_tokens: 3", "max_new_tokens: 3, batch_size: 1"),
        ("  plain: {data: {transform: plain}}\n", ""), ("  guarded: {guard: {gradient_projection: {directions: caps}}}\n", ""),
    )  # fmt: skip
    killed = []
    begin = processes._start

    def kill_the_second(job, rank, count, port):
        process = forked.one_of_several(job, rank, count, port)
        if rank == 1 and "baseline" in str(job) and not killed:
            killed.append(process)
            process.send_signal(signal.SIGKILL)
        return process

    monkeypatch.setattr(processes, "_start", kill_the_second)
    monkeypatch.setattr(evaluated_together, "_processes", lambda *_: 2)
    tp.run(file, tmp_path / "out")
    run = tmp_path / "out" / "baseline" / "seed-0"
    failure = json.loads((run / "FAILED.json").read_text())["error"]
    assert failure == "RunFailed: one of 2 processes was killed; run again"
    assert not (run / "responses.jsonl").exists()
    assert not (run / "evaluator").exists()
    monkeypatch.setattr(processes, "_start", begin)  # as it is for a user, once
    results = tp.run(file, tmp_path / "out", progress=(heard := Heard()))
    assert (run / "DONE.json").is_file()
    assert "training" not in heard.phases  # the adapter was kept
    assert set(results["condition"]) == {"base", "baseline"}
