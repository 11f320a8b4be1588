"""What is wrong with an experiment's data is found before anything is trained, by `validate` as by `run`."""

import json

import pytest

import tiny
import tiny_experiment
import tropism as tp
from tropism.errors import SpecError
from tropism.experiments import checks, estimate
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.prepared import EvaluationSets

HELD_OUT = "held_out: {source: word_problems, size: 3, split: test}"
SHARED = (HELD_OUT, "held_out: {source: word_problems, size: 3}")
TWIN = ("  baseline: {}", '  baseline: {}\n  twin: {note: "the same again"}')


def checked(path, *changes, **overrides):
    experiment = Experiment.load(tiny_experiment.write(path, *changes), overrides=overrides)
    return checks.check_data(experiment, EvaluationSets(experiment), tiny.tokenizer(), 512)


def test_prompts_that_are_also_trained_on_are_counted_in_every_experiment(tmp_path):
    assert checked(tmp_path).leakage == {"held_out": {"shared": 0, "of": 3}}
    found = checked(tmp_path, SHARED)
    assert found.leakage == {"held_out": {"shared": 3, "of": 3}}
    assert found.warnings[-1] == "leakage: 3 of 3 prompts of the evaluation set 'held_out' are also trained on"


def test_a_strict_experiment_refuses_them(tmp_path):
    with pytest.raises(SpecError, match=r"leakage: 3 of 3 prompts .* strict is true; take another split"):
        checked(tmp_path, SHARED, strict=True)
    assert checked(tmp_path, strict=True).leakage["held_out"]["shared"] == 0


def test_what_only_one_condition_trains_on_leaks_too(tmp_path):
    own = ("  baseline: {}", "  baseline: {}\n  other: {data: {split: test, size: 3}}")
    assert checked(tmp_path, own).leakage == {"held_out": {"shared": 3, "of": 3}}


def test_validate_and_run_warn_and_the_report_says_so(tmp_path):
    file = tiny_experiment.write(tmp_path, SHARED)
    experiment = Experiment.load(file, quick=True)
    said = "\n".join(estimate.estimate(experiment).lines())
    assert "warning   leakage: 3 of 3 prompts" in said
    tp.run(experiment, tmp_path / "out", only=["baseline"])
    environment = json.loads((tmp_path / "out" / "environment.json").read_text(encoding="utf-8"))
    assert environment["leakage"] == {"held_out": {"shared": 3, "of": 3}}
    assert "Leakage: 3 of 3 prompts of held out are also trained on" in (tmp_path / "out" / "report.html").read_text()


def test_validate_refuses_two_conditions_that_are_one_as_run_does(tmp_path):
    experiment = Experiment.load(tiny_experiment.write(tmp_path, TWIN))
    with pytest.raises(SpecError, match="the conditions 'baseline' and 'twin' train on the same rendered text"):
        estimate.estimate(experiment)


def test_sizes_are_those_of_the_rows(tmp_path):
    found = checked(tmp_path)
    assert set(found.sizes) == {"condition plain", "condition baseline", "condition guarded"}
    sizes = found.sizes["condition plain"]
    assert sizes.rows == 8
    assert sizes.longest * sizes.rows >= sizes.tokens > sizes.longest
