"""The one file that touches hooks: which module a site is, tuples, and what is in an output."""

import contextlib

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithPast

import architectures
import tiny
import tropism as tp
from tropism import hooks
from tropism.errors import ModelError, SiteError
from tropism.site import base_model, width


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


@contextlib.contextmanager
def hooks_removed(handle):
    yield
    handle.remove()


def adapted():
    return get_peft_model(tiny.model(), LoraConfig(target_modules=["q_proj"]))


def test_a_pass_is_seen_once_wherever_it_enters():
    """The wrapper in training, the model inside in PEFT's `generate`, the decoder alone in some losses."""
    model = adapted()
    seen = []
    handles = hooks.around_pass(
        model,
        lambda module, args, kwargs: seen.append(("in", type(module).__name__)),
        lambda module, args, output: seen.append(("out", type(module).__name__)),
    )
    batch = tiny.batch()
    ways = {
        "PeftModel": lambda: model(**batch),
        "LlamaForCausalLM": lambda: model.generate(input_ids=batch["input_ids"], max_new_tokens=1, do_sample=False),
        "LlamaModel": lambda: model.base_model.model.model(input_ids=batch["input_ids"]),
    }
    for name, run in ways.items():
        seen.clear()
        run()
        assert seen == [("in", name), ("out", name)]
    for handle in handles:
        handle.remove()
    seen.clear()
    model(**batch)
    assert seen == []


def test_a_pass_that_was_cut_short_does_not_hide_the_next():
    model = adapted()
    seen = []
    hooks.around_pass(model, lambda *_: seen.append("in"), lambda *_: seen.append("out"))
    with hooks_removed(hooks.edit_activation(model, tp.Site(1), lambda h: 1 / 0)), pytest.raises(ZeroDivisionError):
        model(**tiny.batch())
    assert seen == ["in"]
    model.base_model.model.model(input_ids=tiny.batch()["input_ids"])
    assert seen == ["in", "in", "out"]


def test_a_pass_inside_a_checkpoint_is_one_pass():
    model = tiny.model()
    seen = []
    hooks.around_pass(model, lambda *_: seen.append("in"), lambda *_: seen.append("out"))
    x = model.get_input_embeddings()(tiny.batch()["input_ids"])
    out = checkpoint(lambda h: model.model(inputs_embeds=h).last_hidden_state, x, use_reentrant=False)
    out.sum().backward()
    assert seen == ["in", "out"]


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: get_peft_model(m, LoraConfig(target_modules=["q_proj"]))])
def test_generation_is_bracketed_and_the_method_put_back(wrap):
    model = wrap(tiny.model())
    seen = []
    handles = hooks.around_generation(model, lambda: seen.append("begin"), lambda: seen.append("end"))
    model.generate(input_ids=tiny.batch()["input_ids"], max_new_tokens=1, do_sample=False)
    with pytest.raises(ValueError):
        model.generate(input_ids=tiny.batch()["input_ids"], max_new_tokens=-1)
    assert seen == ["begin", "end", "begin", "end"]
    for handle in handles:
        handle.remove()
    assert "generate" not in base_model(model).__dict__
    model.generate(input_ids=tiny.batch()["input_ids"], max_new_tokens=1, do_sample=False)
    assert len(seen) == 4


_SEVERAL = {
    "Gemma3nTextConfig": {
        "intermediate_size": [8] * 2,
        "layer_types": ["sliding_attention"] * 2,
        "num_kv_shared_layers": 0,
    },
    "DeepseekV4Config": {},
    "HYV4Config": {},
    "Qwen4ExpTextConfig": {},
}


@pytest.mark.parametrize("name", _SEVERAL)
def test_several_residual_streams_are_refused_with_the_reason(name, tokenizer):
    """Gemma 3n's blocks pass on `[4, B, T, d]`, DeepSeek V4's and HY V4's `[B, T, 4, d]`, Qwen 4's `[B, T, 4·d]`."""
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"this transformers has no {name}")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(kind(num_hidden_layers=2, **_SEVERAL[name]))
    d = tp.Directions({tp.Site(1): torch.ones(width(model))})
    chats = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]]
    contrast = tp.Contrast.of_responses(["q"], positive=["A"], negative=["a"])
    for attempt in (
        lambda: tp.Ablation(d, positions="response").attach(model).__enter__(),
        lambda: tp.GradientProjection(d).attach(model).__enter__(),
        lambda: tp.Steering(d).attach(model).__enter__(),
        lambda: tp.capture(model, [tp.Site(1)]).__enter__(),
        lambda: tp.find_directions(model, tokenizer, contrast, sites=[tp.Site(1, "attn_out")]),
        lambda: tp.collect_gradients(model, tokenizer, chats, [tp.Site(1)]),
        lambda: tp.projection(model, tokenizer, chats, d, "response"),
    ):
        with pytest.raises(SiteError, match=r"carry several residual streams side by side \(\[.*4.*\]\)"):
            attempt()


def test_activations_of_another_shape_are_refused_where_no_option_told_of_them(model):
    """A block that passes on several streams although its config says nothing of it."""
    d = tp.Directions({tp.Site(1): torch.ones(32)})
    model.model.layers[1].register_forward_hook(lambda _module, _args, h: h.unsqueeze(2).expand(-1, -1, 2, -1))
    with (
        pytest.raises(ModelError, match=r"resid_post.1 must be \[B, T, d_model\].*found \[3, 9, 2, 32\]"),
        tp.Ablation(d, positions="response").attach(model),
    ):
        model(**tiny.batch())
