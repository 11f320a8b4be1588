"""An experiment over base weights of 4 bits: every guard acts, and what is measured is the adapter beside the weights."""

import json

import pytest

import tiny
import tiny_experiment
import tropism as tp
from tropism import models
from tropism.adapters.merge import merge_adapters
from tropism.errors import MissingExtra, ModelError, SpecError

NF4 = ("seeds: [0, 1]\n", "seeds: [0]\nload: {quantization: nf4}\n")
DIVIDED = ("max_steps: 2, batch_size: 4,", "max_steps: 2, batch_size: 4, processes: 2, parallel: fsdp2,")
AUTO = ("max_new_tokens: 3, dtype: float32", "max_new_tokens: 3")
ADAPTERS = ("conditions:\n", "adapters: {trait: {data: {source: word_problems, size: 4}, train: {epochs: 1.0}}}\n"
            "parameter_directions: {trait: {adapter: trait}}\nconditions:\n")  # fmt: skip
GUARDS = ("  plain: {data: {transform: plain}}\n", """  constrained: {guard: {update_constraint: {directions: trait}}}
  routed: {guard: {gradient_routing: {}}}
  frozen: {guard: [{frozen_adapter: {adapter: trait}}, {ablation: {directions: caps}}]}
""")  # fmt: skip
MIXED = ("size: 8, transform: uppercase", "size: 8, transform: {mixture: {clean: 0.5}}")


def test_a_missing_package_is_one_sentence_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match=r"load: {quantization: nf4} needs the package 'bitsandbytes'"):
        models.Loading(quantization="nf4").arguments(__import__("torch").float32, "cpu")


def test_what_cannot_be_together_is_refused_in_the_file(tmp_path):
    with pytest.raises(
        SpecError, match="start_from.*is merged into the weights, and those of load: {quantization: nf4}"
    ):
        tp.Experiment.load(
            tiny_experiment.write(tmp_path, NF4, AUTO, ADAPTERS, ("seeds: [0]\n", "seeds: [0]\nstart_from: trait\n"))
        )
    with pytest.raises(SpecError, match="generate.dtype: cannot be had of weights in few bits"):
        tp.Experiment.load(tiny_experiment.write(tmp_path, NF4))
    with pytest.raises(
        SpecError, match="train.parallel: fsdp2 divides weights number by number, and .*nf4} packs them"
    ):
        tp.Experiment.load(tiny_experiment.write(tmp_path, NF4, AUTO, DIVIDED))
    with pytest.raises(SpecError, match="max_memory.*does nothing without device_map"):
        tp.Experiment.load(tiny_experiment.write(tmp_path, (NF4[0], "load: {max_memory: {cpu: 1GiB}}\n")))


@pytest.mark.slow
def test_every_guard_over_four_bits(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'tropism[quantization]'")
    # bitsandbytes quantises in blocks of 64, and packs no narrower weight on the CPU.
    tiny.model(width=64).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    file = tiny_experiment.write(tmp_path, NF4, AUTO, ADAPTERS, GUARDS, MIXED)
    results = tp.run(file, tmp_path / "out")
    assert set(results["condition"]) == {"base", "constrained", "routed", "frozen", "baseline", "guarded"}
    loss = results[results["metric"] == "loss"]  # the tiny model's answers may have no letter to score
    assert (loss["unscored"] == 0).all()
    assert loss["value"].notna().all()
    for name in ("constrained", "routed", "frozen", "guarded"):
        assert (tmp_path / "out" / name / "seed-0" / "DONE.json").is_file()
    last = (tmp_path / "out" / "constrained" / "seed-0" / "training.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["guard/update_constraint/leak_cumulative"] < 1e-4
    experiment = tp.Experiment.load(file)
    model, _ = models.load(experiment.model, loading=experiment.loaded.loading)
    assert models.is_quantized(model)
    adapted = models.load_adapter(model, tmp_path / "out" / "guarded" / "seed-0" / "adapter")
    with pytest.raises(ModelError, match="held in few bits, to which the merged adapter would be rounded"):
        merge_adapters(adapted)
