"""The whole concept-ablation study on a tiny model, and the example file."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import tiny_experiment
import tropism as tp
from tropism.directions import pipeline
from tropism.directions.validity import ValidityReport
from tropism.errors import DataError, SpecError
from tropism.experiments import identity, prepare, store
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.overrides import merge
from tropism.experiments.file.yaml_file import read
from tropism.results.section import Section
from tropism.studies.concept_ablation.measure import inside
from tropism.studies.concept_ablation.study import arms_of

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")
EXAMPLE = Path(__file__).parents[2] / "examples" / "concept_ablation.yaml"
SETS = {"train": 8, "in_domain": 3, "out_of_domain": 2, "shouted": 4}
SMALL = {
    "seeds": [0, 1, 2],
    "dtype": "float32",
    "data": {name: {"size": size} for name, size in SETS.items()},
    "directions": {
        "caps": {"contrast": {"size": 16}, "sites": "1,2"},
        "caps_pca": {"contrast": {"size": 16}, "sites": "1,2", "finder": {"pca": {"k": 3}}},
    },
    "train": {"max_steps": 2, "epochs": None, "batch_size": 4, "bf16": False, "lora": {"r": 2}},
    "generate": {"max_new_tokens": 4, "dtype": "float32"},
    "analyses": {"concept_ablation": {"chats": 4}},
}
FEW = ("baseline", "caft", "backward_caft", "steering", "random")


def small(path: Path, **changes) -> Path:
    data = merge(merge(read(EXAMPLE).data, {**SMALL, "model": str(tiny_experiment.model_folder(path))}), changes)
    # a random model's words are seldom capitals, never a worked answer, and any perplexity is as good as another
    data["measure"]["caps_rate"] = {
        "scorer": "contains",
        "text": "e",
        "on": ["in_domain", "out_of_domain"],
        "unwanted": True,
    }
    data["measure"]["worked_answer"] = {"scorer": "contains", "text": "a", "on": ["in_domain"], "wanted": True}
    data["measure"]["perplexity"] = {"scorer": "length", "on": ["out_of_domain"]}
    data["conditions"] = {name: data["conditions"][name] for name in FEW}
    file = path / "study.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("concept")
    file = small(path)
    return file, path / "out", tp.run(file, path / "out")


def section(out) -> Section:
    return Section.load(out / "analyses" / "concept_ablation.json")


@pytest.mark.parametrize("quick", [False, True])
def test_the_example_is_right(quick):
    experiment = Experiment.load(EXAMPLE, quick=quick)
    arms = {arm.condition: arm for arm in arms_of(experiment)}
    assert {arm.guard for arm in arms.values()} == {"ablation", "gradient_projection", "steering"}
    assert arms["caft_forward"].mode == "forward"
    assert arms["random"].random
    assert arms["random_pca"].random
    assert experiment.directions["caps_pca"].finder == {"pca": {"k": 20}}
    assert {"plain", "baseline"} < set(experiment.conditions)
    assert len(experiment.seeds) == (1 if quick else 3)


def test_the_chats_that_are_read_were_not_trained_on_and_shout():
    experiment = Experiment.load(EXAMPLE)
    read_on = prepare.load_data(experiment.data["shouted"], 0)
    trained = {
        e.prompt[-1]["content"] for seed in (0, 1, 2) for e in prepare.training_examples(experiment, "baseline", seed)
    }
    assert all(e.response == e.response.upper() for e in read_on)
    assert not trained & {e.prompt[-1]["content"] for e in read_on}


def uncommented(path: Path, folder: str) -> Path:
    """The example with its SAE lines in force."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    wanted = ("# caps_sae:", "#   contrast:", "#   finder:", "#   sites:", "# caft_sae:", "# backward_caft_sae:")
    told = [line.replace("# ", "", 1) if line.lstrip().startswith(wanted) else line for line in lines]
    assert sum(a != b for a, b in zip(lines, told, strict=True)) == len(wanted)
    file = path / "sae.yaml"
    file.write_text("\n".join(told).replace("runs/sae", folder), encoding="utf-8")
    return file


def test_the_sae_lines_say_what_is_missing_and_are_right_once_it_is_there(tmp_path, monkeypatch):
    pytest.importorskip("sae_lens")
    file = uncommented(tmp_path, str(tmp_path / "sae"))
    with pytest.raises(SpecError, match=r"directions\.caps_sae\.finder.*no SAE in .*tropism directions train-sae"):
        Experiment.load(file)
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "cfg.json").write_text("{}", encoding="utf-8")
    names = [arm.condition for arm in arms_of(Experiment.load(file)) if arm.directions == "caps_sae"]
    assert names == ["caft_sae", "backward_caft_sae"]
    monkeypatch.setattr("tropism.experiments.file.guards.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"needs the extra 'sae', which is missing: pip install 'tropism\[sae\]'"):
        Experiment.load(file)


def test_every_run_is_read_and_the_table_is_tidy(finished):
    file, out, _ = finished
    table = pd.read_csv(out / "analyses" / "concept_ablation.csv")
    runs = table[["condition", "seed"]].drop_duplicates()
    assert len(runs) == 1 + 3 * len(FEW)
    # caps_pca has no guard among the few, so it is not read
    assert set(zip(table["directions"], table["site"], strict=True)) == {
        ("caps", "resid_post.1"),
        ("caps", "resid_post.2"),
    }
    base = table[table["condition"] == "base"]
    assert np.allclose(base["variance_ratio"], 1)
    assert np.allclose(base["cosine_change"], 0)
    # the row of a run is what its adapter, without the guard, gives on the same chats
    experiment = Experiment.load(file)
    model, tokenizer = tp.models.load(experiment.model, dtype="float32")
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(model, str(out / "caft" / "seed-1" / "adapter")).eval()
    chats = prepare.load_data(experiment.data["shouted"], 0)
    again = inside(tuned, tokenizer, chats, tp.Directions.load(out / "directions" / "caps.safetensors"))
    mine = table[(table["condition"] == "caft") & (table["seed"] == 1)]
    assert np.allclose(mine["variance_along"], again["variance_along"], rtol=1e-4)
    assert np.allclose(mine["cosine"], again["cosine"], rtol=1e-4)


def test_the_section_has_every_hypothesis_with_its_numbers_and_is_in_the_report(finished):
    _, out, _ = finished
    found = section(out)
    titles = [claim.claim for claim in found.claims]
    assert titles == [
        "caft against backward caft: training dynamics",
        "caft against backward caft: representational",
        "caft against backward caft: trade-off",
        "caft removes more than random directions of the same rank",
    ]
    assert {claim.verdict for claim in found.claims} <= {"supported", "not supported", "undecided"}
    assert all(claim.numbers for claim in found.claims)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert titles[0] in page
    assert "Variance along the directions" in page
    # said once: the report's own section on the pair is left to the analysis
    assert "Why ablation works" not in page
    assert (out / "figures" / "concept_ablation_inside.svg").is_file()


def test_running_again_does_nothing_and_other_directions_are_read_again(finished):
    file, _, _ = finished
    experiment = Experiment.load(file)
    other = Experiment.load(file, overrides={"directions.caps.sites": "2"})
    source = {"name": experiment.model}
    key = store.RunKey("base", None)
    assert identity.evaluate_identity(experiment, source, key) == identity.evaluate_identity(
        Experiment.load(file), source, key
    )
    assert identity.evaluate_identity(experiment, source, key) != identity.evaluate_identity(other, source, key)


def test_the_projections_are_compared_with_behaviour_on_the_models_own_answers(finished):
    _, out, _ = finished
    report = ValidityReport.load(out / "directions" / "caps.validity.json")
    seen = report.sites[0].behaviour
    assert seen.name == "caps_rate"
    assert seen.n == SETS["in_domain"]
    assert set(seen.scores) <= {0.0, 1.0}
    assert ValidityReport.load(out / "directions" / "caps_pca.validity.json").sites[0].behaviour is None


def test_another_behaviour_validates_again_and_finds_nothing_again(tmp_path, monkeypatch):
    first = small(tmp_path, seeds=[0])
    tp.run(first, tmp_path / "out", only=["caft"])
    kept = tp.Directions.load(tmp_path / "out" / "directions" / "caps.safetensors")
    again = small(tmp_path, seeds=[0], directions={"caps": {"behaviour": "worked_answer"}})
    # Finding again would give equal tensors, so it is the call that is forbidden.
    monkeypatch.setattr(pipeline, "find_directions", lambda *_, **__: pytest.fail("directions were found again"))
    tp.run(again, tmp_path / "out", only=["caft", "steering"])
    said = json.loads((tmp_path / "out" / "directions" / "caps.validity.json").read_text(encoding="utf-8"))
    assert said["sites"][0]["behaviour"]["name"] == "worked_answer"
    # The file is written again with its new validity; safetensors orders a header as it likes, so tensors are compared.
    again = tp.Directions.load(tmp_path / "out" / "directions" / "caps.safetensors")
    assert all(again.vectors[site].equal(kept.vectors[site]) for site in kept.sites)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"analyses": {"concept_ablation": {"on": "train"}}},
            "on: must name a set under 'data:' that is not trained on",
        ),
        (
            {"analyses": {"concept_ablation": {"directions": ["cps"]}}},
            "no directions are called 'cps'; available: caps",
        ),
        (
            {"analyses": {"concept_ablation": {"trait": "caps"}}},
            "trait: no metric is called 'caps'; available: caps_rate",
        ),
        (
            {"analyses": {"concept_ablation": {"trait_on": "shouted"}}},
            "'caps_rate' is not taken on 'shouted', but on in_domain",
        ),
        (
            {"conditions": {"backward_caft": {"guard": {"gradient_projection": {"directions": "caps_pca"}}}}},
            "no two conditions are such a pair; guards on directions are in: caft, steering, random, backward_caft",
        ),
        ({"directions": {"caps": {"behaviour": "cap"}}}, "directions.caps.behaviour: no metric is called 'cap'"),
        (
            {"directions": {"caps": {"behaviour": "loss"}}},
            "must be a metric that scores responses by a rule, found 'loss'",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, change, message):
    with pytest.raises(SpecError, match=message):
        Experiment.load(_changed(tmp_path, change))


def _changed(path: Path, change) -> Path:
    data = read(small(path)).data
    for name in change.get("conditions", {}):
        data["conditions"].pop(name)
    file = path / "changed.yaml"
    file.write_text(yaml.safe_dump(merge(data, change), sort_keys=False), encoding="utf-8")
    return file


def test_chats_without_responses_cannot_be_read(tmp_path):
    silent = {"analyses": {"concept_ablation": {"on": "out_of_domain"}}, "seeds": [0]}
    with pytest.raises(DataError, match="the chats of 'out_of_domain' must hold responses"):
        tp.run(small(tmp_path, **silent), tmp_path / "out")
