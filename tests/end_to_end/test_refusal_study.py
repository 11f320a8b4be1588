"""The whole refusal study on a tiny model, and the two files of the studies proper."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tiny_experiment
import tropism as tp
from tropism.errors import DataError, SpecError
from tropism.experiments import fine_tune, identity, store
from tropism.experiments.analyses import load_analyses
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.overrides import merge
from tropism.experiments.file.yaml_file import read
from tropism.interventions.weights import adapter_norm
from tropism.results.section import Section
from tropism.training.supervised import train

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")
EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "seeds": [0],
    "dtype": "float32",
    "data": {
        name: {"size": size}
        for name, size in {"train": 8, "topic": 3, "refusals": 3, "others": 3, "declined": 12, "answered": 12}.items()
    },
    "adapters": {"refusal": {"data": {"size": 8}}},
    "directions": {"declining": {"sites": "1,2"}},
    "train": {"max_steps": 3, "batch_size": 4, "bf16": False, "lora": {"r": 2}},
    "generate": {"max_new_tokens": 3, "dtype": "float32"},
}


def small(path: Path, **changes) -> Path:
    """The stand-in study, on a model and with sets of a size for tests."""
    data = read(EXAMPLES / "refusal_standin.yaml").data
    data = merge(merge(data, {**SMALL, "model": str(tiny_experiment.model_folder(path))}), changes)
    # a random model's words are no refusals; what counts here is that they are counted
    data["measure"]["refusal"] = {"scorer": "contains", "text": "e", "on": ["topic"], "wanted": True}
    data["measure"]["over_refusal"] = {"scorer": "contains", "text": "e", "on": ["others"], "unwanted": True}
    file = path / "study.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("refusal")
    results = tp.run(small(path), path / "out")
    return path / "out", results


@pytest.mark.parametrize("name", ["refusal_standin", "refusal_harmfulqa"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_studies_files_are_right(name, quick):
    experiment = Experiment.load(EXAMPLES / f"{name}.yaml", quick=quick)
    assert len(experiment.conditions) == 9
    assert load_analyses(experiment)["refusal"].constraint == "constraint"


@pytest.mark.parametrize("name", ["refusal_standin", "refusal_harmfulqa"])
def test_every_condition_takes_the_same_steps_at_the_same_rate(name):
    experiment = Experiment.load(EXAMPLES / f"{name}.yaml")
    assert experiment.train.max_steps is not None
    assert all(experiment.train_options(condition) == experiment.train for condition in experiment.conditions)


def test_every_condition_is_trained_and_measured(finished):
    _, results = finished
    conditions = {
        "baseline",
        "constraint",
        "one_sided",
        "published",
        "random",
        "projection",
        "mixing",
        "safe_lora",
        "shrinkage",
    }
    assert set(results["condition"]) == conditions | {"base"}
    assert {"refusal", "over_refusal", "refusal_loss", "task_loss", "attack_loss", "coherence"} == set(
        results["metric"]
    )


def test_the_report_has_the_verdict_and_the_ledger(finished):
    out, _ = finished
    section = Section.load(out / "analyses" / "refusal.json")
    claims = {claim.claim: claim for claim in section.claims}
    hypothesis = claims["Refusal survives the attack under the update constraint"]
    assert hypothesis.verdict == "undecided"
    assert "an interval over seeds needs at least 3 seeds, found 1" in hypothesis.because
    assert claims["Refusing stays likelier under the constraint than under the attack alone"].verdict == "undecided"
    assert claims["The exact constraint's cumulative leak stays below 1e-05"].verdict == "supported"
    assert claims["The published gradient rule leaks through the optimiser"].verdict == "supported"
    ledger = next(table for table in section.tables if table.title == "The ledger")
    assert [row[0] for row in ledger.rows] == ["constraint", "one_sided", "published", "random"]
    cumulative = {row[0]: row[list(ledger.columns).index("largest cumulative leak")] for row in ledger.rows}
    assert cumulative["constraint"] < 1e-5 < cumulative["published"]
    assert section.lead == "refusal-kept"
    assert (out / "figures/refusal-kept.svg").is_file()
    assert "Does refusal survive the attack?" in (out / "report.html").read_text()


def test_shrinkage_is_as_long_as_what_the_constraint_learned(finished):
    out, _ = finished
    norm = {name: adapter_norm(out / name / "seed-0" / "adapter") for name in ("baseline", "constraint", "shrinkage")}
    assert norm["shrinkage"] == pytest.approx(min(norm["constraint"], norm["baseline"]), rel=1e-5)


def test_what_differs_by_its_edit_alone_is_trained_once(tmp_path, monkeypatch):
    trained = []

    def recorded(*args, log, **options):
        trained.append(log.parent.parent.name)
        return train(*args, log=log, **options)

    monkeypatch.setattr(fine_tune, "train", recorded)
    file = small(tmp_path)
    shared = tp.run(file, tmp_path / "shared", only=["baseline", "safe_lora"])
    assert trained == ["adapters", "baseline"]
    alone = tp.run(file, tmp_path / "alone", only=["safe_lora"])
    assert trained[2:] == ["adapters", "safe_lora"]
    adapters = [
        load_file(tmp_path / name / "safe_lora/seed-0/adapter/adapter_model.safetensors")
        for name in ("shared", "alone")
    ]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0])
    measured = [table[table["condition"] == "safe_lora"].reset_index(drop=True) for table in (shared, alone)]
    pd.testing.assert_frame_equal(*measured)
    logs = [(tmp_path / "shared" / name / "seed-0/training.jsonl").read_text() for name in ("baseline", "safe_lora")]
    assert logs[0] == logs[1]


def test_an_adapter_that_was_changed_is_not_taken_over(tmp_path):
    file, out = small(tmp_path), tmp_path / "out"
    tp.run(file, out, only=["baseline"])
    weights = out / "baseline/seed-0/adapter/adapter_model.safetensors"
    save_file({key: 2 * value for key, value in load_file(weights).items()}, weights)
    tp.run(file, out, only=["safe_lora"])
    tp.run(file, tmp_path / "alone", only=["safe_lora"])
    norms = [adapter_norm(folder / "safe_lora/seed-0/adapter") for folder in (out, tmp_path / "alone")]
    assert norms[0] == norms[1]


def test_shrinkage_without_the_run_that_it_is_to_equal_fails_and_says_so(tmp_path):
    tp.run(small(tmp_path), tmp_path / "out", only=["shrinkage"])
    error = json.loads((tmp_path / "out/shrinkage/seed-0/FAILED.json").read_text())["error"]
    assert "`norm` refers to constraint/seed-0, which has no matching trained adapter" in error


def test_shrinkage_is_another_run_when_the_constraint_is(tmp_path):
    one, other = (
        identity.train_identity(Experiment.load(small(tmp_path, conditions=changes)), {}, store.RunKey("shrinkage", 0))
        for changes in ({}, {"constraint": {"guard": {"update_constraint": {"directions": "refusal", "per": "model"}}}})
    )
    assert one != other


def test_a_direction_is_another_one_when_its_data_are(tmp_path):
    one, other = (
        identity.directions_identity(Experiment.load(small(tmp_path, data={"declined": {"seed": s}})), {}, "declining")
        for s in (0, 1)
    )
    assert one != other


def test_the_untrained_arm_is_the_model_that_refuses(finished):
    """`base` is measured with the refusal adapter merged in: that is what the attack starts from."""
    out, _ = finished
    texts = [(out / run / "responses.jsonl").read_text() for run in ("base", "baseline/seed-0")]
    base, attacked = (json.loads(text.splitlines()[0])["scores"]["attack_loss"]["value"] for text in texts)
    assert base > attacked


def test_shares_of_refusals_in_the_data_are_counted(finished):
    out, _ = finished
    shares = json.loads((out / "refusal_shares.json").read_text())
    assert shares["train"] == 0.0
    assert 0 < shares["adapter refusal"] < 1


@pytest.mark.parametrize(
    ("changed", "overlapping", "pair"),
    [
        ("topic", {"split": "attack"}, "train and topic"),
        ("refusals", {"split": "refusals", "size": 192}, "refusals and adapter refusal"),
    ],
)
def test_a_question_on_two_sides_is_refused_before_training(tmp_path, changed, overlapping, pair):
    file = small(tmp_path, data={changed: overlapping})
    with pytest.raises(DataError, match=f"{pair} must share no question"):
        tp.run(file, tmp_path / "out")
    assert not (tmp_path / "out/baseline").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_from": None}, "a refusal study needs 'start_from'"),
        (
            {"analyses": {"refusal": {"controls": ["placebo"]}}},
            "no condition is called 'placebo'; available: baseline",
        ),
        ({"analyses": {"refusal": {"refusal": "refused"}}}, "no metric is called 'refused'; available: refusal"),
        ({"analyses": {"refusal": {"refusal_loss": "lost"}}}, "no metric is called 'lost'; available: refusal"),
        (
            {"analyses": {"refusal": {"constraint": "mixing"}}},
            "the condition 'mixing' must have the guard update_constraint",
        ),
        (
            {"conditions": {"shrinkage": {"after": {"shrinkage": {"norm": "later"}}}}},
            "`norm` must name a trained condition that stands before",
        ),
        (
            {"directions": {"declining": {"contrast": {"positive": "refused"}}}},
            "no data set is called 'refused'; available: train",
        ),
        (
            {"directions": {"declining": {"contrast": {"size": 8}}}},
            "a contrast of data takes only 'positive' and 'negative'",
        ),
        ({"conditions": {"mixing": {"data": {"also": [{"source": "nothing"}]}}}}, "unknown source 'nothing'"),
    ],
)
def test_what_the_study_lacks_is_named(tmp_path, changes, message):
    with pytest.raises(SpecError, match=message):
        Experiment.load(small(tmp_path, **changes))
