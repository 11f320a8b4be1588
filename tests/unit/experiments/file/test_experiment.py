"""An experiment file is read, merged with its overrides and resolved."""

import pytest
import yaml

import tropism as tp
from spec_text import TEXT
from tropism.errors import SpecError
from tropism.experiments.file.experiment import Experiment


def test_a_good_file_is_resolved_with_every_default():
    experiment = Experiment.from_text(TEXT)
    assert experiment.train.batch_size == 8
    assert experiment.resolved()["generate"]["temperature"] == 0
    assert experiment.train_data("plain").transform == "plain"
    assert experiment.train_data("baseline").transform == "uppercase"


def test_the_resolved_file_means_the_same():
    experiment = Experiment.from_text(TEXT)
    assert Experiment.from_text(yaml.safe_dump(experiment.resolved(), sort_keys=False)) == experiment


def test_quick_and_overrides_are_merged_and_checked():
    assert Experiment.from_text(TEXT, quick=True).seeds == [0]
    assert Experiment.from_text(TEXT, overrides={"train.lora.r": 3}).train.lora.r == 3
    with pytest.raises(SpecError, match="train.lora.rank: unknown key"):
        Experiment.from_text(TEXT, overrides={"train.lora.rank": 3})


def test_quick_without_a_quick_section_is_refused():
    text = TEXT.replace("quick: {seeds: [0]}\n", "")
    with pytest.raises(SpecError, match="--quick applies the section 'quick:', which this file does not have"):
        Experiment.from_text(text, quick=True)


def test_the_public_name_is_this_class():
    assert tp.Experiment is Experiment
