"""What `tropism validate` says of an experiment, also where the hub cannot be asked."""

from pathlib import Path

import pytest
from huggingface_hub import constants

import tiny_experiment
from tropism import models
from tropism.data.sources import harmful_qa, hub
from tropism.errors import DataError, HubOutOfReach, ModelError
from tropism.experiments import estimate
from tropism.experiments.executors.pool import Pool
from tropism.experiments.file.experiment import Experiment

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_it_counts_runs_tokens_and_memory(tmp_path):
    experiment = Experiment.load(tiny_experiment.write(tmp_path))
    first, *lines = estimate.estimate(experiment).lines()
    assert first.startswith(f"{experiment.name} is valid: {len(experiment.conditions)} conditions")
    assert [line.split()[0] for line in lines[:4]] == ["model", "training", "responses", "memory"]


@pytest.mark.parametrize(("room", "said"), [(0, "this machine has 0.0 GiB, and 2 at a time will take"), (2**40, "")])
def test_runs_side_by_side_that_do_not_fit_are_said(tmp_path, monkeypatch, room, said):
    monkeypatch.setattr(estimate, "all_memory", lambda _: room)
    found = estimate.estimate(Experiment.load(tiny_experiment.write(tmp_path)), Pool(2))
    crowded = [line for line in found.warnings if "at a time" in line]
    assert len(crowded) == bool(said)
    assert all(line.startswith(said) for line in crowded)


def test_what_is_trained_once_counts_once():
    # nine conditions of 24 steps in three seeds, of which two edit the baseline's adapter
    found = estimate.estimate(Experiment.load(EXAMPLES / "refusal_standin.yaml"))
    assert found.size.training_steps == 504


@pytest.fixture
def no_hub(monkeypatch):
    def unreachable(name, *_, **__):
        raise HubOutOfReach(f"dataset {name!r} could not be loaded from the hub: no connection")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "hub_rows", unreachable)


@pytest.mark.usefixtures("no_hub")
def test_without_the_hub_a_study_on_it_still_validates_and_says_what_is_unchecked():
    said = "\n".join(estimate.estimate(Experiment.load(EXAMPLES / "refusal_harmfulqa.yaml")).lines())
    assert said.startswith(
        "refusal_harmfulqa is written correctly: 9 conditions × 3 seeds and the untrained model, 28 runs"
    )
    assert "unchecked model 'Qwen/Qwen3-0.6B'" in said
    assert said.count(f"unchecked dataset {harmful_qa.HUB_NAME!r}") == 1
    assert "tokens and memory are not known" in said


@pytest.mark.usefixtures("no_hub")
def test_data_that_are_here_are_checked_all_the_same(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("not json\n")
    experiment = Experiment.load(EXAMPLES / "refusal_harmfulqa.yaml", overrides={"data.everyday": {"source": str(bad)}})
    with pytest.raises(DataError, match="line 1") as caught:
        estimate.estimate(experiment)
    assert not isinstance(caught.value, HubOutOfReach)


def test_a_hub_that_answers_no_is_another_error_than_a_hub_that_does_not_answer(monkeypatch):
    def answer(reason):
        def on_hub(*_):
            raise reason

        monkeypatch.setattr(models.sources, "_on_hub", on_hub)
        with pytest.raises(ModelError, match="'some/model' was not found") as caught:
            models.resolve("some/model")
        return type(caught.value)

    assert answer(ModelError("the hub answered 404")) is ModelError
    assert answer(HubOutOfReach("the hub is out of reach")) is HubOutOfReach
