"""A merged model computes what its adapters did, saved and loaded again too; tied weights are untied, not changed."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import adapter_kinds
import architectures
import tiny
from tropism.adapters.kinds import KINDS
from tropism.adapters.merge import merge_adapters, tied_and_adapted
from tropism.errors import ModelError


@pytest.mark.parametrize("name", adapter_kinds.NAMES)
def test_every_kind_merges_exactly_or_is_refused_by_name(name):
    model = adapter_kinds.make(name)
    before = adapter_kinds.logits(model)
    with adapter_kinds.quiet():
        if "merge" not in KINDS[adapter_kinds.EXAMPLES[name].kind].exact:
            with pytest.raises(ModelError, match="the adapter has .* and cannot be merged into the weights: "):
                merge_adapters(model)
            assert torch.equal(adapter_kinds.logits(model), before)
            return
        merged = merge_adapters(model)
    torch.testing.assert_close(adapter_kinds.logits(merged), before, atol=1e-4, rtol=1e-4)


def tied(**options):
    """A tiny Llama whose output embedding is its input embedding."""
    config = tiny.model().config
    config.tie_word_embeddings = True
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


TIED = {
    "output": {"target_modules": ["q_proj", "lm_head"]},
    "input": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "tied adapters": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "whole output": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
    "neither": {"target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("case", TIED)
def test_tied_embeddings_merged_saved_and_loaded_again(case, tmp_path):
    with torch.random.fork_rng(), adapter_kinds.quiet():
        torch.manual_seed(1)
        model = get_peft_model(tied(), LoraConfig(r=4, **TIED[case]))
        adapter_kinds.move(model)
        before = adapter_kinds.logits(model)
        merged = merge_adapters(model)
        torch.testing.assert_close(adapter_kinds.logits(merged), before, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            adapter_kinds.logits(copy.deepcopy(merged).to(torch.bfloat16).float()), before, atol=0.5, rtol=0.5
        )
        merged.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(adapter_kinds.logits(again), adapter_kinds.logits(merged))
    still_tied = case == "neither"
    assert merged.config.tie_word_embeddings is still_tied
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) is still_tied


def test_only_what_is_shared_and_adapted_is_untied():
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    with adapter_kinds.quiet():
        model = get_peft_model(tied(), config)
    layers = list(tied_and_adapted(model))
    assert [(layer is model.get_base_model().lm_head.base_layer, name) for layer, name in layers] == [(True, "weight")]
    assert not list(tied_and_adapted(get_peft_model(tiny.model(), config)))


def test_a_bias_without_a_place_to_merge_it_is_refused():
    with adapter_kinds.quiet():
        model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True))
    with pytest.raises(
        ModelError, match=r"learned a bias \(lora_bias\) at model.layers.0.self_attn.q_proj, whose layer has"
    ):
        merge_adapters(model)


@pytest.mark.parametrize("name", architectures.NAMES)
def test_every_architecture_merges_an_adapter_of_its_output_embedding(name):
    base = architectures.build(name, dtype=torch.float32)
    head = next(n for n, module in base.named_modules() if module is base.get_output_embeddings())
    with torch.random.fork_rng(), adapter_kinds.quiet():
        torch.manual_seed(1)
        model = get_peft_model(base, LoraConfig(r=2, target_modules=[head]))
        adapter_kinds.move(model)
    batch = {k: v for k, v in architectures.batch(name).items() if k != "labels"}
    with torch.no_grad():
        before = model.eval()(**batch).logits
        after = merge_adapters(model)(**batch).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("names", [["default"], None])
def test_another_adapter_that_is_in_the_weights_already_is_refused(names):
    """PEFT would return a model that still holds it; what is asked for may be in the weights already."""
    model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    wanted = adapter_kinds.logits(model)
    with adapter_kinds.quiet():
        model.merge_adapter(adapter_names=["other"])
        with pytest.raises(
            ModelError, match=r"hold 'default' alone, found 'other' merged .*q_proj already; call model.unm"
        ):
            merge_adapters(model, names)
        model.unmerge_adapter()
        model.merge_adapter(adapter_names=["default"])
        merged = merge_adapters(model, names)
    torch.testing.assert_close(adapter_kinds.logits(merged), wanted, atol=1e-4, rtol=1e-4)
