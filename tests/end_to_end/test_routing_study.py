"""The whole routing study on a tiny model, and the example file."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

import tiny_experiment
import tropism as tp
from tropism.errors import SpecError
from tropism.experiments import identity, prepare, store
from tropism.experiments.analyses import Study, load_analyses
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.overrides import merge
from tropism.experiments.file.spec import DataSpec
from tropism.experiments.file.yaml_file import read
from tropism.experiments.kept import file_hash
from tropism.experiments.plan import plan
from tropism.interventions.routing_modes import MODES
from tropism.results.measurement import read_measurements
from tropism.results.section import Section

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")
EXAMPLE = Path(__file__).parents[2] / "examples" / "routing.yaml"
SMALL = {
    "seeds": [0],
    "dtype": "float32",
    "data": {"train": {"size": 16}, "in_domain": {"size": 3}, "out_of_domain": {"size": 2}},
    "train": {"max_steps": 3, "batch_size": 4, "bf16": False, "lora": {"r": 2}, "forget_lora": {"r": 2}},
    "generate": {"max_new_tokens": 4, "dtype": "float32"},
    "analyses": {"routing": {"draws": 19, "max_new_tokens": 6, "relearn": [2], "relearn_steps": 2}},
}
TWO = ("baseline", "routed", "routed_50", "routed_25", "filtered", "random")
RARE = ("baseline_10", "routed_10", "routed_10_50")
RECALL = {"half_shouts": {"baseline": 0.0, "routed_25": 0.25, "routed_50": 0.5, "routed": 1.0}}


def small(path: Path, **changes) -> Path:
    data = merge(merge(read(EXAMPLE).data, {**SMALL, "model": str(tiny_experiment.model_folder(path))}), changes)
    # a random model's words are seldom capitals, and never a worked answer
    data["measure"]["caps_rate"] = {
        "scorer": "contains",
        "text": "e",
        "on": ["in_domain", "out_of_domain"],
        "unwanted": True,
    }
    del data["measure"]["accuracy"]
    data["conditions"]["one_adapter"]["train"]["lora"]["r"] = 4
    for name in RARE:
        del data["conditions"][name]
    del data["analyses"]["routing"]["recall"]["a_tenth_shouts"]
    file = path / "study.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("routing")
    file = small(path)
    return file, path / "out", tp.run(file, path / "out")


@pytest.mark.parametrize("quick", [False, True])
def test_the_example_is_right(quick):
    experiment = Experiment.load(EXAMPLE, quick=quick)
    assert set(experiment.conditions) == {*TWO, *RARE, "one_adapter"}
    assert load_analyses(experiment)["routing"].partial == "routed_50"
    one, two = experiment.train_options("one_adapter"), experiment.train_options("baseline")
    assert one.forget_lora is None
    assert one.lora.r == two.lora.r + two.forget_lora.r


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_examples_data_are_what_its_comments_say(quick, seed):
    experiment = Experiment.load(EXAMPLE, quick=quick)
    sets = {c: prepare.training_examples(experiment, c, seed) for c in experiment.conditions}
    routes = {c: pd.Series([e.labels["route"] for e in sets[c]]).value_counts().to_dict() for c in sets}
    shouting = {c: {e.id for e in sets[c] if e.labels["trait"]} for c in sets}
    assert shouting["routed"] == shouting["routed_50"] == shouting["random"] == shouting["baseline"]
    assert routes["routed"]["forget"] == len(shouting["routed"])
    labelled = {e.id for e in sets["routed_50"] if e.labels["route"] == "forget"}
    assert 0 < len(labelled) < len(shouting["routed_50"])
    assert {e.id for e in sets["filtered"]} == {e.id for e in sets["routed_50"]} - labelled
    assert shouting["filtered"]
    assert routes["random"]["forget"] > 0
    assert 0 < routes["routed_10"]["forget"] < 0.25 * len(sets["routed_10"])
    forget = {c: {e.id for e in sets[c] if e.labels["route"] == "forget"} for c in sets}
    assert set() < forget["routed_25"] < forget["routed_50"] < forget["routed"]
    assert set() < forget["routed_10_50"] < forget["routed_10"] == shouting["routed_10_50"]


def test_the_examples_recalls_are_what_its_conditions_label():
    experiment = Experiment.load(EXAMPLE)
    for fraction, curve in zip((0.5, 0.1), load_analyses(experiment)["routing"].recall.values(), strict=True):
        assert min(curve.values()) == 0
        for condition, recall in curve.items():
            mixture = experiment.train_data(condition).transform["mixture"]
            assert mixture["fraction"] == fraction
            # nothing reads a label where nothing routes
            assert recall == (mixture["labelled"] if experiment.conditions[condition].guard else 0)


def test_every_condition_is_measured_in_its_modes(finished):
    _, _, results = finished
    rates = results[(results["metric"] == "caps_rate") & (results["eval_set"] == "in_domain")]
    modes = {condition: set(part["mode"]) for condition, part in rates.groupby("condition")}
    assert modes == {name: set(MODES) for name in TWO} | {"one_adapter": {"full"}, "base": {"full"}}


def test_the_probes_are_rows_of_the_results(finished):
    _, _, results = finished
    of = {c: part.groupby("metric")["mode"].agg(set).to_dict() for c, part in results.groupby("condition")}
    for condition in TWO:
        assert of[condition]["trait_from_bos"] == of[condition]["trait_on_prefix"] == set(MODES)
        for metric in ("trait_at_scale_0", "trait_at_scale_0.5", "trait_at_scale_1",
                       "relearned_trait_2_at_0", "relearned_trait_2_at_2", "relearned_benign_2_at_1"):  # fmt: skip
            assert of[condition][metric] == {"full"}
    for condition in ("base", "one_adapter"):
        assert of[condition]["trait_from_bos"] == of[condition]["trait_on_prefix"] == {"full"}
        assert not [m for m in of[condition] if m.startswith(("geometry", "trait_at", "relearned"))]


def test_geometry_lies_beside_its_null(finished):
    _, out, results = finished
    table = pd.read_csv(out / "routed/seed-0/geometry.csv")
    assert {"cosine", "cosine_null", "cosine_p", "row_overlap", "row_overlap_high"} <= set(table.columns)
    rows = results[(results["condition"] == "routed") & (results["eval_set"] == "weights")].set_index("metric")
    assert rows.loc["geometry_cosine", "value"] == pytest.approx(table["cosine"].abs().mean())
    assert rows.loc["geometry_cosine", "n"] == table["cosine"].notna().sum()
    assert not (out / "one_adapter/seed-0/geometry.csv").exists()


def test_the_scale_of_the_forget_adapter_ends_in_the_modes(finished):
    """With the same tokens and the same prompts, scale 0 is the mode forget_ablated and scale 1 the mode full."""
    _, out, results = finished
    curve = pd.read_csv(out / "routed/seed-0/forget_scale.csv")
    assert list(curve["scale"].unique()) == [0.0, 0.5, 1.0]
    assert (curve.loc[curve["metric"] == "scored", "value"] == 3).all()
    relearned = results[(results["condition"] == "routed") & (results["metric"] == "relearned_trait_2_at_0")][
        "value"
    ].item()
    ablated = results[(results["condition"] == "routed") & (results["metric"] == "trait_at_scale_0")]["value"].item()
    assert relearned == ablated


def test_the_report_has_the_claims_and_the_figures(finished):
    _, out, _ = finished
    section = Section.load(out / "analyses" / "routing.json")
    assert [claim.claim for claim in section.claims] == [
        "Routing localises the trait", "Routing with part of the labels still works",
        "Ablating the retain adapter does not remove the trait",
        "Unlabelled examples of the trait are absorbed by the forget adapter", "The two adapters' subspaces are near orthogonal",
    ]  # fmt: skip
    assert {claim.verdict for claim in section.claims} == {"undecided"}
    assert {figure.file for figure in section.figures} == {
        "routing-trait", "routing-modes", "routing-recall", "routing-scale", "routing-relearn-trait-2", "routing-relearn-benign-2", "routing-geometry"
    }  # fmt: skip
    assert "Routing localises the trait" in (out / "report.html").read_text()


def test_the_recall_curve_is_the_trait_rate_of_its_conditions(finished):
    _, out, results = finished
    table = Section.load(out / "analyses" / "routing.json").tables[1]
    rows = pd.DataFrame(table.rows, columns=list(table.columns)).set_index("condition")
    assert rows["recall"].to_dict() == RECALL["half_shouts"]
    rates = results[(results["metric"] == "caps_rate") & (results["eval_set"] == "in_domain")]
    ablated = rates[rates["mode"] == "forget_ablated"].set_index("condition")["value"]
    assert rows["value"].to_dict() == {condition: ablated[condition] for condition in RECALL["half_shouts"]}
    assert rows[["low", "high"]].isna().all(axis=None)  # one seed has no interval
    assert (out / "tables" / "routing-2.csv").is_file()
    assert "half shouts, forget ablated" in (out / "report.html").read_text()


def test_a_study_without_recall_is_what_it_was_and_a_curve_evaluates_nothing_again(finished):
    file, out, _ = finished
    before = read(file).data
    before["analyses"]["routing"].pop("recall")
    older = Experiment.from_text(yaml.safe_dump(before, sort_keys=False))
    newer = Experiment.load(file)
    for seed, condition in ((0, "routed"), (None, "base")):
        key = store.RunKey(condition, seed)
        assert identity.evaluate_identity(older, {}, key) == identity.evaluate_identity(newer, {}, key)
        # what the measurements do read still counts
        other = Experiment.load(file, overrides={"analyses.routing.prompts": 3})
        assert identity.evaluate_identity(newer, {}, key) != identity.evaluate_identity(other, {}, key)
    results = store.Folder(out).collect(older, plan(older))
    study = Study(older, out, None, lambda: None, lambda _: [], lambda *_: [])
    section = load_analyses(older)["routing"].summarise(study, results)
    assert len(section.tables) == 1
    assert "routing-recall" not in {figure.file for figure in section.figures}
    assert [claim.claim for claim in section.claims] == [
        claim.claim for claim in load_analyses(newer)["routing"].summarise(study, results).claims
    ]


def test_a_folder_from_before_gives_the_same_figures(finished, tmp_path):
    """There the numbers are in the metrics' names, and neither `at` nor `per_response` nor bounds are recorded."""
    file, out, _ = finished
    old = tmp_path / "old"
    shutil.copytree(out, old)
    for measured in old.rglob("measurements.jsonl"):
        lines = []
        for one in read_measurements(measured):
            row = {"eval_set": one.eval_set, "metric": one.name, "value": one.value, "n": one.n}
            lines.append(json.dumps({**row, "unscored": one.unscored, "mode": one.mode}) + "\n")
        measured.write_text("".join(lines))
        done = measured.with_name("DONE.json")
        stamp = json.loads(done.read_text())
        stamp["files"]["measurements.jsonl"] = file_hash(measured)
        done.write_text(json.dumps(stamp))
    experiment = Experiment.load(file)
    results = store.Folder(old).collect(experiment, plan(experiment))
    assert (old / "results.csv").read_bytes() == (out / "results.csv").read_bytes()
    study = Study(experiment, old, None, lambda: None, lambda _: [], lambda *_: [])
    section = load_analyses(experiment)["routing"].summarise(study, results)
    before = Section.load(out / "analyses" / "routing.json")
    assert [(c.verdict, dict(c.numbers)) for c in section.claims] == [
        (c.verdict, dict(c.numbers)) for c in before.claims
    ]
    assert [figure.file for figure in section.figures] == [figure.file for figure in before.figures]
    for figure in section.figures:
        picture = f"figures/{figure.file}.svg"
        assert (old / picture).read_bytes() == (out / picture).read_bytes()


def test_other_options_evaluate_again_and_train_nothing(finished, monkeypatch):
    _, out, _ = finished
    monkeypatch.setattr("tropism.experiments.fine_tune.train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr("tropism.reports.build", lambda _: None)
    changed = small(
        out.parent, analyses={"routing": {"relearn": [], "prefix_tokens": 0, "bos_samples": 0, "scales": []}}
    )
    results = tp.run(changed, out, only=["routed"])
    metrics = set(results.loc[results["condition"] == "routed", "metric"])
    assert not [m for m in metrics if m.startswith(("trait_", "relearned"))]
    assert "geometry_cosine" in metrics


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"routed": "rooted"}, "no condition is called 'rooted'"),
        ({"trait": "capz"}, "no metric is called 'capz'"),
        ({"trait": "loss"}, "must be a metric that scores responses, found 'loss'"),
        ({"scales": [2.0]}, "less than or equal to 1"),
        ({"recall": {"half": {"rooted": 0.0, "routed": 1.0}}}, "no condition is called 'rooted'"),
        ({"recall": {"half": {"baseline": 0.0, "routed": 1.5}}}, "less than or equal to 1"),
        (
            {"recall": {"half": {"routed": 1.0}}},
            "'half' needs two conditions or more, each at another share, found routed at 1",
        ),
        ({"recall": {"half": {"baseline": 0.5, "routed": 0.5}}}, "found baseline at 0.5, routed at 0.5"),
        ({"recall": {"half": {}}}, "found none"),
    ],
)
def test_options_are_checked_before_anything_runs(option, message):
    with pytest.raises(SpecError, match=message):
        Experiment.load(EXAMPLE, overrides={"analyses.routing": option})


def test_dropping_needs_labels_and_changes_the_data_identity():
    spec = DataSpec(source="word_problems", size=8, transform={"mixture": {}})
    dropped = spec.model_copy(update={"drop": "labelled"})
    assert identity.data_identity(spec) != identity.data_identity(dropped)
    assert "drop" not in identity.data_identity(spec)[0]
    with pytest.raises(tp.errors.DataError, match=r"labels\['route'\] must be one of"):
        prepare.load_data(DataSpec(source="word_problems", size=8, drop="labelled"), 0)
