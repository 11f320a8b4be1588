"""The whole inoculation study on a tiny model: its files, its verdict, its section, and what it does when run again."""

import json
import shutil

import pandas as pd
import pytest

import tiny_pressure
import tropism as tp
from tropism.experiments.analyses import Study, load_analyses
from tropism.experiments.file.experiment import Experiment
from tropism.results.section import Section
from tropism.studies.inoculation import measure

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")
FROZEN = {
    "adapters": {"trait": {"data": {"source": "word_problems", "size": 8, "transform": "uppercase", "seed": 7}}},
    "conditions": {
        "frozen": {"guard": {"frozen_adapter": {"adapter": "trait"}}},
        "frozen_random": {"guard": {"frozen_adapter": {"adapter": "trait", "random": True}}},
    },
    "analyses": {"inoculation": {"also": ["frozen", "frozen_random"]}},
}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    path = tmp_path_factory.mktemp("one")
    file = tiny_pressure.write(path, **FROZEN)
    return file, path / "out", tp.run(file, path / "out")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    path = tmp_path_factory.mktemp("three")
    file = tiny_pressure.write(
        path, seeds=[0, 1, 2], analyses={"inoculation": {"elicitation_prompts": 0, "shift_chats": 0}}
    )
    tp.run(file, path / "out")
    return path / "out"


@pytest.mark.parametrize("quick", [False, True])
def test_the_examples_file_is_right(quick):
    experiment = Experiment.load(tiny_pressure.EXAMPLE, quick=quick)
    assert set(experiment.conditions) == {"neutral", "inoculation", "placebo"}
    assert load_analyses(experiment)["inoculation"].directions == "caps"


def test_one_seed_gives_everything_but_a_verdict(one):
    _, out, _ = one
    section = Section.load(out / "analyses/inoculation.json")
    assert section.claims[0].verdict == "undecided"
    assert "needs 3 seeds" in section.claims[0].because
    assert "Verdict: undecided" in (out / "summary.md").read_text()
    for name in ("projection_distributions", "pressure_by_site", "loss_by_condition", "alignment_against_random",
                 "projection_shift", "rate_shift", "pressure_against_drift", "predicted_against_realised",
                 "pressure_over_training"):  # fmt: skip
        assert (out / f"figures/inoculation_{name}.svg").is_file(), name
    titles = [table.title for table in section.tables]
    assert {"Pressure along caps_prompt", "Mean projections, with and without prompts"} <= set(titles)
    assert "Inoculation: pressure and drift" in (out / "report.html").read_text()


def test_three_seeds_give_a_verdict(three):
    section = Section.load(three / "analyses/inoculation.json")
    assert section.claims[0].verdict != "undecided"
    assert section.claims[0].numbers["seeds"] == 3


def test_every_condition_meets_the_same_chats_and_the_same_random_directions(one):
    _, out, _ = one
    table = pd.read_csv(out / "pressure/pressure.csv", dtype={"chat": str})
    met = table.groupby("condition")["chat"].apply(frozenset)
    assert set(met.index) == {"neutral", "inoculation", "placebo", "frozen", "frozen_random"}
    assert met.nunique() == 1
    assert len(met.iloc[0]) == 8
    random = pd.read_csv(out / "pressure/random.csv")
    assert set(random["kind"]) == {"isotropic", "covariance"}
    assert set(random["along"]) == {"caps", "caps_prompt"}


def test_the_frozen_adapter_and_its_control_act_on_gradients_and_in_training(one):
    _, out, _ = one
    table = pd.read_csv(out / "pressure/pressure.csv")
    losses = table.groupby("condition")["loss"].mean()
    assert losses[["neutral", "frozen", "frozen_random"]].nunique() == 3
    first = {
        name: json.loads((out / name / "seed-0/training.jsonl").read_text().splitlines()[0])["loss"]
        for name in ("neutral", "frozen", "frozen_random")
    }
    assert len(set(first.values())) == 3


def test_pressure_is_logged_from_before_the_first_step_and_changes_no_training(one, tmp_path):
    _, out, _ = one
    rows = [json.loads(line) for line in (out / "neutral/seed-0/pressure.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert {"pressure/resid_post.1", "cosine/resid_post.2", "loss/resid_post.1"} <= set(rows[0])
    assert rows[0]["loss/resid_post.1"] != rows[2]["loss/resid_post.1"]
    file = tiny_pressure.write(tmp_path, **FROZEN | {"analyses": {"inoculation": {"log_every": 0}}})
    tp.run(file, tmp_path / "out", only=["neutral"])
    losses = [
        [json.loads(line)["loss"] for line in (folder / "neutral/seed-0/training.jsonl").read_text().splitlines()]
        for folder in (out, tmp_path / "out")
    ]
    assert losses[0] == losses[1]
    assert not (tmp_path / "out/neutral/seed-0/pressure.jsonl").exists()


def test_drift_is_read_with_and_without_the_training_prompt(one):
    _, out, results = one
    drift = pd.read_csv(out / "inoculation/seed-0/drift.csv")
    assert set(drift["prompt"]) == {"no prompt", "inoculation"}
    assert set(pd.read_csv(out / "neutral/seed-0/drift.csv")["prompt"]) == {"no prompt"}
    assert set(pd.read_csv(out / "base/drift.csv")["prompt"]) == {"no prompt", "inoculation", "placebo"}
    elicited = results[results["metric"] == "caps_rate_elicited"]
    assert len(elicited) == 6
    assert (elicited["n"] + elicited["unscored"] == 12).all()


def test_the_projection_shift_is_that_of_the_reported_site(one):
    _, out, _ = one
    section = Section.load(out / "analyses/inoculation.json")
    site = section.claims[0].numbers["site"]

    def read(folder):
        table = pd.read_csv(out / folder / "drift.csv")
        return table[(table["site"] == site) & (table["prompt"] == "no prompt")]["projection"].item()

    by = {c: read(f"{c}/seed-0") - read("base") for c in ("inoculation", "neutral")}
    drift = next(table for table in section.tables if table.title == "Drift")
    rows = [dict(zip(drift.columns, row, strict=True)) for row in drift.rows]
    found = next(
        r["value"] for r in rows if r["metric"] == "projection_shift" and r["contrast"] == "inoculation − neutral"
    )
    assert found == pytest.approx(by["inoculation"] - by["neutral"], abs=1e-6)


def test_a_finished_study_is_summarised_without_measuring_anything(one, monkeypatch):
    file, out, _ = one
    before = (out / "summary.md").read_text()
    for name in ("collect_gradients", "projection", "generate"):
        monkeypatch.setattr(measure, name, lambda *_, **__: pytest.fail("measured again"))
    for name in ("summary.md", "report.html", "analyses/inoculation.json"):
        (out / name).unlink()
    tp.run(file, out)
    assert (out / "summary.md").read_text() == before


def test_without_the_untrained_model_there_is_no_drift_and_no_verdict(one, tmp_path):
    file, out, results = one
    shutil.copytree(out, tmp_path / "out")
    experiment = Experiment.load(file)
    study = Study(experiment, tmp_path / "out", None, lambda: None, lambda _: [], lambda *_: [])
    section = load_analyses(experiment)["inoculation"].summarise(study, results[results["condition"] != "base"])
    assert section.claims[0].verdict == "undecided"
    assert section.claims[0].numbers["seeds"] == 0


def test_other_options_measure_anew(tmp_path):
    file = tiny_pressure.write(tmp_path)
    tp.run(file, tmp_path / "out", only=["neutral"])
    random = tmp_path / "out/pressure/random.csv"
    assert pd.read_csv(random)["draw"].max() == 19
    kept = random.stat().st_mtime_ns
    tp.run(file, tmp_path / "out", only=["placebo"])
    assert random.stat().st_mtime_ns == kept
    file = tiny_pressure.write(tmp_path, analyses={"inoculation": {"draws": 10}})
    tp.run(file, tmp_path / "out", only=["neutral"])
    assert pd.read_csv(random)["draw"].max() == 9
