"""The stress battery: every test changes the model that it is about and no other, and leaves its run as it was."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

import tiny
import tiny_experiment
import tropism as tp
from judge_server import completion, serving
from tropism.errors import SpecError
from tropism.experiments.analyses import TrainedRun
from tropism.experiments.file.yaml_file import parse
from tropism.results.folder import load
from tropism.studies.stress.rounding import round_linear_layers, rounded
from tropism.studies.stress.study import _trainable

TESTS = ["relearn", "benign_finetune", "elicit", "merge", "quantise"]


def file(path, **changes):
    made = parse(tiny_experiment.text(path)).data
    made |= {"seeds": [0], "directions": {}, "stress": TESTS}
    made["data"]["benign"] = {"source": "word_problems", "size": 4, "split": "test", "seed": 2}
    made["measure"]["caps_rate"] = {"scorer": "contains", "text": "e", "on": ["held_out"], "unwanted": True}
    made["conditions"] = {
        "baseline": {},
        "asked": {"system_prompt": "Shout."},
        "two": {"train": {"forget_lora": {"r": 2}}},
    }
    made["generate"] = {"max_new_tokens": 6, "dtype": "float32"}
    options = {"benign": "benign", "examples": [4, 8], "steps": 3, "rate": 0.05, "max_new_tokens": 6, "prompts": 3}
    made["analyses"] = {"stress": options}
    return {**made, **changes}


def test_the_battery_writes_its_rows_beside_the_others(tmp_path):
    (tmp_path / "stress.yaml").write_text(yaml.safe_dump(file(tmp_path)), encoding="utf-8")
    results = tp.run(tmp_path / "stress.yaml", tmp_path / "out")
    held = {name: set(part["metric"]) for name, part in results.groupby("condition")}
    everything = {"stress_none", "stress_relearn_4", "stress_relearn_8", "stress_benign_finetune", "stress_elicit",
                  "stress_elicit_most", "stress_merge", "stress_quantise"}  # fmt: skip
    for condition in ("baseline", "asked", "two"):
        assert everything <= held[condition], condition
    # The untrained model has no adapter to merge, and is fine-tuned by a fresh one.
    assert held["base"] & everything == everything - {"stress_merge"}
    values = results.set_index(["condition", "metric"])["value"]
    for condition in ("baseline", "asked", "two"):
        assert values[condition, "stress_merge"] == values[condition, "stress_none"]
        assert values[condition, "stress_elicit_most"] >= values[condition, "stress_elicit"]
    folder = load(tmp_path / "out")
    (section,) = [one for one in folder.analyses if one.name == "stress"]
    assert [table.title for table in section.tables][1:3] == [
        "after fine-tuning on this many examples with the trait: 4",
        "after fine-tuning on this many examples with the trait: 8",
    ]
    assert all(run.state == "done" for run in folder.runs)


def test_rounding_is_to_the_nearest_level_of_each_block():
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    weight[0, :64] = 0.0
    expected = np.zeros((5, 70))
    for row in range(5):
        for start in (0, 64):
            block = weight[row, start : start + 64].numpy().astype(np.float64)
            scale = np.abs(block).max() / 7
            levels = np.arange(-7, 8) * scale
            nearest = np.abs(block[:, None] - levels[None, :]).argmin(axis=1)
            expected[row, start : start + 64] = levels[nearest]
    np.testing.assert_allclose(rounded(weight).numpy(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="bits must be at least 2"):
        rounded(weight, bits=1)


def test_the_output_embedding_is_not_rounded():
    model = tiny.model()
    before = model.lm_head.weight.clone()
    assert round_linear_layers(model) == 4 * 7
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"analyses": {"stress": {}}}, "benign_finetune needs 'benign'"),
        ({"analyses": {"stress": {"benign": "nothing"}}}, "benign: no data set is called 'nothing'"),
        ({"analyses": {"stress": {"tests": ["merge"]}}}, "stress: is given, and so is analyses.stress.tests"),
        ({"stress": ["melt"]}, "stress"),
        ({"load": {"quantization": "nf4"}, "generate": {}}, "merge and quantise need weights in full"),
        (
            {"measure": {"caps_rate": {"scorer": "response_loss", "on": ["held_out"], "unwanted": True}}},
            r"must be a metric that scores responses, found 'caps_rate' \(response_loss\)",
        ),
        ({"conditions": {"baseline": {}}, "stress": ["elicit"], "analyses": {}}, "elicit needs 'prompts_that_ask'"),
    ],
)
def test_what_the_battery_needs_is_said(tmp_path, changes, message):
    with pytest.raises(SpecError, match=message):
        tp.Experiment.from_text(yaml.safe_dump(file(tmp_path, **changes)))


GUARDS = {
    "ablation": {"guard": {"ablation": {"directions": "caps"}}},
    "projection": {"guard": {"gradient_projection": {"directions": "caps"}}},
    "steering": {"guard": {"steering": {"directions": "caps"}}},
    "routed": {"guard": {"gradient_routing": {}}, "data": {"transform": {"mixture": {"labelled": 1.0}}}},
    "constraint": {"guard": {"update_constraint": {"directions": "learned"}}},
    "frozen": {"guard": {"frozen_adapter": {"adapter": "trait"}}},
    "inoculation": {"system_prompt": "Shout."},
    "shrunk": {"after": {"shrinkage": {"factor": 0.5}}},
    "dora": {"train": {"lora": {"r": 2, "dora": True}}},
    "full": {"train": {"adapter": "full", "learning_rate": 1e-3}},
    "whole": {"model": "MODEL"},
    "published": {"adapter": "there"},
}
"""What can be done against a trait, and each kind of model that may come of it."""


def every_kind(path):
    """An experiment with every kind of guard, a full fine-tune, a whole model and a published adapter."""
    made = file(path)
    made["directions"] = parse(tiny_experiment.text(path)).data["directions"]
    made["parameter_directions"] = {"learned": {"adapter": "trait"}}
    there = path / "there"
    get_peft_model(tp.models.load(made["model"])[0], LoraConfig(r=2, target_modules="all-linear")).save_pretrained(
        there
    )
    trained = {"data": {"source": "word_problems", "size": 8, "transform": "uppercase"}}
    made["adapters"] = {"trait": {**trained, "train": {"max_steps": 4}}, "there": {"from": str(there)}}
    made["conditions"] = {"baseline": {}, **GUARDS, "whole": {"model": made["model"]}}
    made["analyses"]["stress"] |= {"examples": [4], "steps": 2, "prompts": 2, "max_new_tokens": 4}
    made["generate"] = {"max_new_tokens": 4, "dtype": "float32"}
    return made


def test_every_guard_and_kind_of_model_can_be_put_under_the_battery(tmp_path):
    (tmp_path / "stress.yaml").write_text(yaml.safe_dump(every_kind(tmp_path)), encoding="utf-8")
    results = tp.run(tmp_path / "stress.yaml", tmp_path / "out")
    folder = load(tmp_path / "out")
    assert all(run.state == "done" for run in folder.runs)
    held = results[results["metric"].str.startswith("stress_")].groupby("condition")["metric"].agg(set)
    names = ("none", "relearn_4", "benign_finetune", "elicit", "elicit_most", "merge", "quantise")
    everything = {f"stress_{name}" for name in names}
    for condition in ("base", "baseline", *GUARDS):
        unmerged = {"stress_merge"} if condition in ("base", "full", "whole") else set()
        assert held[condition] == everything - unmerged, condition


@pytest.mark.parametrize("seed", [None, 3])
def test_a_model_without_an_adapter_is_fine_tuned_by_a_fresh_one_and_stays_as_it_was(tmp_path, seed):
    experiment = tp.Experiment.from_text(yaml.safe_dump(file(tmp_path)))
    model = tiny.model().eval()
    model.lm_head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    logits = model(**tiny.batch()).logits
    study = SimpleNamespace(experiment=experiment, say=None)
    run = TrainedRun(study, "whole", seed, tmp_path, model)
    drawn = []
    for _ in range(2):
        with _trainable(run, two=False) as parameters:
            assert {parameter.requires_grad for parameter in parameters} == {True}
            assert len(parameters) == 2 * 4 * 7
            drawn.append([parameter.detach().clone() for parameter in parameters])
            parameters[1].data.fill_(1.0)
            assert not torch.equal(model(**tiny.batch()).logits, logits)
        assert torch.equal(model(**tiny.batch()).logits, logits)
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))
    assert {name: value.shape for name, value in model.state_dict().items()} == {n: v.shape for n, v in before.items()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert "peft_config" not in vars(model)


def test_a_judged_trait_can_be_put_under_the_battery(tmp_path, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "of-no-use")
    made = file(tmp_path, stress=["relearn", "merge"])
    with serving(lambda text, _: completion("80", top=[[("80", -0.1), ("20", -3.0)]])) as server:
        judge = {"scorer": "judge", "prompt": "How? {question} {answer}", "model": "m", "base_url": server.url}
        made["measure"]["caps_rate"] = {**judge, "cache": str(tmp_path / "c"), "on": ["held_out"], "unwanted": True}
        made["conditions"] = {"baseline": {}}
        made["analyses"]["stress"] |= {"examples": [4], "steps": 2}
        (tmp_path / "stress.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
        results = tp.run(tmp_path / "stress.yaml", tmp_path / "out")
    rows = results[(results["condition"] == "baseline") & results["metric"].str.startswith("stress_")]
    assert set(rows["metric"]) == {"stress_none", "stress_relearn_4", "stress_merge"}
    assert rows["value"].between(70, 80).all()
