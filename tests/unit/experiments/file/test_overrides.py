"""`quick:`, `--set` and what a condition changes are merged over the file."""

import pytest

from spec_text import TEXT
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.overrides import merge, nested


def test_merge_replaces_what_is_no_mapping():
    assert merge({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}}) == {"a": {"b": 1, "c": [2]}}


def test_a_dotted_key_is_nested():
    assert nested("a.b.c", 1) == {"a": {"b": {"c": 1}}}


@pytest.mark.parametrize(("under", "over"), [("epochs", "max_steps"), ("max_steps", "epochs")])
def test_setting_one_length_of_training_replaces_the_other_at_every_level(under, over):
    file = TEXT.replace("train: {learning_rate", f"train: {{{under}: 3, learning_rate")
    file = file.replace("quick: {seeds: [0]}", f"quick: {{train: {{{over}: 2}}}}")
    file = file.replace("plain: {", f"plain: {{train: {{{over}: 4}}, ")
    for experiment in (
        Experiment.from_text(file, quick=True),
        Experiment.from_text(file, overrides={f"train.{over}": 2}),
    ):
        assert getattr(experiment.train, under) is None
        assert getattr(experiment.train, over) == 2
    own = Experiment.from_text(file).train_options("plain")
    assert (getattr(own, under), getattr(own, over)) == (None, 4)


def test_a_null_replaces_nothing():
    assert merge({"epochs": 2}, {"max_steps": None}) == {"epochs": 2, "max_steps": None}


def test_both_given_at_one_level_stay_for_the_check_to_refuse():
    assert merge({}, {"epochs": 2, "max_steps": 3}) == {"epochs": 2, "max_steps": 3}
