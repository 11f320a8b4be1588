"""The one file that touches hooks: which module a site is, tuples, and what is in an output."""

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

import architectures
import tiny
import tropism as tp
from tropism import hooks
from tropism.errors import ModelError, SiteError


def test_an_edit_replaces_the_activation_in_tensors_and_tuples():
    h = torch.ones(1, 2, 3)
    assert hooks.first_tensor((h, "weights")) is h
    assert hooks.first_tensor(h) is h
    edited = hooks.with_first_tensor((h, "weights"), h + 1)
    assert edited[1] == "weights"
    assert torch.equal(edited[0], h + 1)
    assert isinstance(hooks.with_first_tensor([h, 1], h), list)
    with pytest.raises(ModelError, match="returned dict, in which no activation tensor comes first"):
        hooks.first_tensor({"h": h})


@pytest.mark.parametrize("name", ["llama", "bloom"])  # a tensor and a tuple
@pytest.mark.parametrize("stream", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
def test_an_edit_takes_effect_and_leaves_with_its_handle(name, stream):
    model, batch = architectures.build(name).eval(), architectures.batch(name)
    before = model(**batch).logits
    handle = hooks.edit_activation(model, tp.Site(1, stream), lambda h: h + 1)
    assert not torch.equal(model(**batch).logits, before)
    handle.remove()
    assert torch.equal(model(**batch).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_resid_pre_of_a_block_is_resid_post_of_the_one_before(model):
    with tp.capture(model, [tp.Site(0), tp.Site(1, "resid_pre")]) as acts:
        model(**tiny.batch())
    assert acts[tp.Site(0)] is acts[tp.Site(1, "resid_pre")]


def test_sites_that_the_model_lacks(model):
    with pytest.raises(SiteError, match="resid_post.4 is past the last block: the model has blocks 0 to 3"):
        hooks.module_at(model, tp.Site(4))
    del model.model.layers[0].mlp
    with pytest.raises(
        SiteError, match=r"mlp_out.0: LlamaDecoderLayer has no submodule that computes it \(it has: self_attn"
    ):
        hooks.module_at(model, tp.Site(0, "mlp_out"))


def test_norms_after_attention_count_only_where_they_are_after():
    gemma, llama = architectures.build("gemma2"), architectures.build("llama")
    block = tp.decoder_layers(gemma)[0]
    assert hooks.module_at(gemma, tp.Site(0, "attn_out"))[0] is block.post_attention_layernorm
    assert hooks.module_at(llama, tp.Site(0, "attn_out"))[0] is tp.decoder_layers(llama)[0].self_attn


def test_tensors_in_an_output():
    a, b = torch.ones(1), torch.zeros(1)
    output = CausalLMOutputWithPast(loss=a, logits=b, hidden_states=(a, b), past_key_values=object())
    assert [id(t) for t in hooks.tensors_in(output)] == [id(t) for t in (a, b, a, b)]
    assert list(hooks.tensors_in(None)) == []


def test_replaying_is_true_in_a_backward_pass_only():
    seen = []
    x = torch.ones(1, requires_grad=True)
    hooks.edit_gradient(x, lambda g: seen.append(hooks.replaying()))
    (x * 2).sum().backward()
    assert seen == [True]
    assert not hooks.replaying()
