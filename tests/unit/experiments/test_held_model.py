"""The start model is loaded once a process, and no run can tell: copies share values and nothing else."""

import hashlib
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import tiny
import tiny_experiment
from tropism import models
from tropism.adapters.merge import merge_adapters
from tropism.errors import RunFailed
from tropism.experiments import held_model
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.held_model import HeldModel, sharing_weights
from tropism.experiments.one_run import run_one
from tropism.experiments.prepared import prepare_experiment
from tropism.experiments.progress import Progress
from tropism.experiments.store import Folder, RunKey

EVERYTHING = (
    ("seeds: [0, 1]", "seeds: [0]"),
    ("transform: uppercase}", "transform: {mixture: {fraction: 0.5, labelled: 1.0}}}"),
    ("conditions:\n", "adapters:\n  skill: {data: {source: word_problems, size: 8, seed: 3}}\nstart_from: skill\nconditions:\n"),
    ("  baseline: {}", "  routed: {guard: {gradient_routing: {}}}\n  baseline: {}\n  caft: {guard: {ablation: {directions: caps}}}"),
    ("quick:", "analyses: {concept_ablation: {on: held_out, chats: 2}}\nquick:"),
)  # fmt: skip
"""A prepared adapter, directions, a guard of activations and one of gradients, three modes, a loss, an analysis."""


def state(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def held(tmp_path):
    experiment = Experiment.load(tiny_experiment.write(tmp_path))
    return HeldModel(experiment, Folder(tmp_path / "out"), models.resolve(experiment.model))


@pytest.fixture
def loads(monkeypatch):
    """Counts how often weights are read from disk."""
    count, load = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: count.append(1) or load(*a, **k))
    return count


def test_what_is_done_to_one_copy_reaches_no_other(held):
    first, before = held.start(), state(held.start())
    flags = {name: p.requires_grad for name, p in first.named_parameters()}
    adapted = get_peft_model(first, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).train()
    adapted.register_forward_hook(lambda *_: None)
    first.config.use_cache = False
    first.generation_config.max_length = 3
    batch = tiny.batch()
    adapted(**batch).loss.backward()
    other = held.start()
    assert same(state(other), before)
    assert {name: p.requires_grad for name, p in other.named_parameters()} == flags
    assert all(p.grad is None for p in other.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m.training for m in other.modules())
    assert "peft_config" not in vars(other)
    assert other.config.use_cache is not False
    assert other.generation_config.max_length != 3
    assert other.get_input_embeddings().weight.data_ptr() == first.get_input_embeddings().weight.data_ptr()


@pytest.mark.parametrize("tied", [False, True])
def test_merging_into_a_copy_leaves_the_model_it_shares_with(tied):
    torch.manual_seed(0)
    model = tiny.model(layers=2)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    before = state(model)
    copy = sharing_weights(model)
    assert (copy.lm_head.weight is copy.model.embed_tokens.weight) == tied
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens", "lm_head"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        adapted = get_peft_model(copy, config).eval()
    batch = tiny.batch()
    with torch.no_grad():
        live = adapted(**batch).logits
        merged = merge_adapters(adapted)
        torch.testing.assert_close(merged(**batch).logits, live, rtol=1e-4, atol=1e-4)
    assert same(state(model), before)
    # what merging does not change stays shared, in one place
    assert merged.model.layers[0].mlp.up_proj.weight.data_ptr() == model.model.layers[0].mlp.up_proj.weight.data_ptr()


@pytest.mark.parametrize("options", [{"bias": "all"}, {"init_lora_weights": "olora"}])
def test_an_adapter_that_changes_base_weights_changes_the_copys_alone(held, tmp_path, options):
    made = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj"], **options))
    made.save_pretrained(tmp_path / "adapter")
    models.load_adapter(held.start(), tmp_path / "adapter", any_base=True, trainable=True)
    held.check("loading")


def test_a_write_into_the_shared_values_is_an_error_and_the_model_is_loaded_anew(held, loads):
    copy, before = held.start(), state(held.start())
    copy.model.norm.weight.data[3] += 1e-3  # a vector is the copy's own
    held.check("nothing")
    copy.model.layers[1].mlp.up_proj.weight.data[3, 4] += 1e-3
    with pytest.raises(
        RunFailed, match=r"the probe wrote into 1 weights .* \(first model.layers.1.mlp.up_proj.weight\)"
    ):
        held.check("the probe")
    assert same(state(held.start()), before)
    assert len(loads) == 2


def test_without_memory_for_a_second_copy_the_held_model_is_given_away(held, loads, monkeypatch):
    held.start()
    assert held.to_merge() is not None
    assert len(loads) == 1
    monkeypatch.setattr(held_model, "_room_beside", lambda _: False)
    given = held.to_merge()
    with torch.no_grad():
        given.lm_head.weight.zero_()  # it is the caller's alone
    assert held.start().lm_head.weight.abs().sum() > 0
    assert len(loads) == 2


def test_what_is_released_is_loaded_anew(held, loads):
    before = state(held.start())
    held.release()
    assert same(state(held.start()), before)
    assert len(loads) == 2


def test_another_process_loads_its_own(held):
    held.start()
    assert len(pickle.dumps(held)) < 50_000
    assert same(state(pickle.loads(pickle.dumps(held)).start()), state(held.start()))


def test_an_experiment_loads_the_model_once_and_finds_what_fresh_loads_find(tmp_path, loads, monkeypatch):
    file = tiny_experiment.write(tmp_path, *EVERYTHING)
    do(file, tmp_path / "once")
    assert len(loads) == 1
    monkeypatch.setattr(held_model, "shares", lambda _: False)  # then each model that is asked for is read from disk
    do(file, tmp_path / "fresh")
    assert len(loads) > 10
    once, fresh = contents(tmp_path / "once"), contents(tmp_path / "fresh")
    assert once == fresh
    assert sum(name.endswith("adapter_model.safetensors") for name in once) == 4


def do(file: Path, out: Path) -> None:
    """Two runs of the experiment, without its report."""
    experiment = Experiment.load(file)
    source = models.resolve(experiment.model)
    folder = Folder.of(out, experiment)
    prepared = prepare_experiment(experiment, folder, source, models.load_tokenizer(source), Progress())
    for condition in ("routed", "caft"):
        assert run_one(prepared, RunKey(condition, 0), Progress()).failed == ""


def contents(folder: Path) -> dict[str, str]:
    """The hash of every adapter, response, measurement and table."""
    kinds = ("adapter_model.safetensors", "responses.jsonl", "measurements.jsonl", ".csv")
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.name.endswith(kinds)
    }


def test_what_is_given_away_is_not_kept_beside_what_is_divided(held):
    assert sum(p.numel() for p in held.given_away().parameters()) > 0
    assert held._model is None
