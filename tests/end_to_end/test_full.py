"""Full fine-tuning as a condition beside adapters: guarded, evaluated from what was saved, and refused what needs an adapter."""

import json

import pytest
import torch

import tiny_experiment
import tropism as tp
from tropism import models
from tropism.errors import RunFolderError, SpecError
from tropism.experiments.after.finished import Finished
from tropism.experiments.store import RunKey

ADAPTERS = ("conditions:\n", "adapters: {trait: {data: {source: word_problems, size: 4}, train: {adapter: lora, epochs: 1.0}}}\n"
            "parameter_directions: {trait: {adapter: trait}}\nconditions:\n")  # fmt: skip
SEED = ("seeds: [0, 1]", "seeds: [0]")
FULL = ("  plain: {data: {transform: plain}}\n", """  full: {train: {adapter: full, save_steps: 1}}
  constrained: {train: {adapter: full}, guard: [{update_constraint: {directions: trait}}, {ablation: {directions: caps}}]}
""")  # fmt: skip


AUTO = ("max_new_tokens: 3, dtype: float32", "max_new_tokens: 3")


@pytest.mark.slow
def test_every_weight_is_trained_saved_and_measured(tmp_path):
    file, out = tiny_experiment.write(tmp_path, SEED, ADAPTERS, FULL), tmp_path / "out"
    results = tp.run(file, out)
    loss = results[results["metric"] == "loss"].set_index("condition")["value"]
    assert set(loss.index) == {"base", "full", "constrained", "baseline", "guarded"}
    assert abs(loss["full"] - loss["base"]) > 1e-4
    trained, _ = models.load(str(out / "full" / "seed-0" / "adapter"))
    base, _ = models.load(tp.Experiment.load(file).model)
    moved = [
        name
        for (name, p), q in zip(trained.named_parameters(), base.parameters(), strict=True)
        if not torch.equal(p, q)
    ]
    assert len(moved) == len(list(base.parameters()))
    log = (out / "constrained" / "seed-0" / "training.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["guard/update_constraint/leak_cumulative"] < 1e-4
    with pytest.raises(RunFolderError, match="trained every weight of the model .adapter: full.*is a model of its own"):
        Finished.read(out).adapters(RunKey("full", 0))


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (
            "guard: {gradient_routing: {}}",
            "gradient_routing updates one of two adapters, and adapter: full trains none",
        ),
        ("after: {shrinkage: {factor: 0.5}}", "edits what an adapter learned, and adapter: full trains none"),
    ],
)
def test_what_needs_an_adapter_is_refused_in_the_file(tmp_path, condition, said):
    change = (
        "  guarded: {guard: {gradient_projection: {directions: caps}}}",
        f"  guarded: {{train: {{adapter: full}}, {condition}}}",
    )
    with pytest.raises(SpecError, match=said):
        tp.Experiment.load(tiny_experiment.write(tmp_path, change))


def test_weights_of_few_bits_and_prepared_adapters_are_not_trained_whole(tmp_path):
    bits = ("seeds: [0, 1]\n", "seeds: [0]\nload: {quantization: nf4}\n")
    with pytest.raises(SpecError, match="adapter: full trains the weights, which load: {quantization: nf4} rounds"):
        tp.Experiment.load(
            tiny_experiment.write(tmp_path, bits, AUTO, (*FULL[:1], "  full: {train: {adapter: full}}\n"))
        )
    with pytest.raises(SpecError, match="a prepared adapter is an adapter; set adapter: lora here"):
        tp.Experiment.load(
            tiny_experiment.write(tmp_path, (ADAPTERS[0], ADAPTERS[1].replace("adapter: lora", "adapter: full")))
        )
