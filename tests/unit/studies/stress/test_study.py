"""The stress battery: every test changes the model that it is about and no other, and leaves its run as it was."""

import numpy as np
import pytest
import torch
import yaml

import tiny
import tiny_experiment
import tropism as tp
from tropism.errors import SpecError
from tropism.experiments.file.yaml_file import parse
from tropism.results.folder import load
from tropism.studies.stress.rounding import round_linear_layers, rounded

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
    # The untrained model has no adapter: it is asked and rounded, and has nothing to relearn with.
    assert held["base"] & everything == {"stress_none", "stress_elicit", "stress_elicit_most", "stress_quantise"}
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
        ({"conditions": {"baseline": {}}, "stress": ["elicit"], "analyses": {}}, "elicit needs 'prompts_that_ask'"),
    ],
)
def test_what_the_battery_needs_is_said(tmp_path, changes, message):
    with pytest.raises(SpecError, match=message):
        tp.Experiment.from_text(yaml.safe_dump(file(tmp_path, **changes)))
