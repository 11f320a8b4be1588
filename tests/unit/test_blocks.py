"""What a block adds to the stream: verified by running it, refused with the residual, and without leaving a trace."""

import copy
import random

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import architectures
import tiny
import tropism as tp
from tropism import blocks, hooks
from tropism.errors import SiteError


def resolve(model, stream, layer=1):
    return hooks.module_at(model, tp.Site(layer, stream))[0]


def mamba(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=3)
        return transformers.AutoModelForCausalLM.from_config(config).to(dtype)


def patched(model, change):
    """Each block's output changed by hand, as an architecture that nobody knows would."""
    for block in tp.decoder_layers(model):
        forward = block.forward
        block.forward = lambda h, *args, forward=forward, **kwargs: change(h, forward(h, *args, **kwargs))
    return model


@pytest.mark.parametrize(
    ("change", "residual"),
    [
        (lambda h, post: h + 0.5 * (post - h), "0.5"),  # a residual multiplier
        (lambda h, post: nn.functional.layer_norm(post, post.shape[-1:]), r"[0-9.]+"),  # a norm after the sum
        (lambda h, post: post + 0.1 * h.tanh(), r"[0-9.]+"),  # a third branch
    ],
)
def test_what_is_not_the_sum_is_refused_with_the_residual_found(change, residual):
    model = patched(tiny.model(), change)
    for stream in ("attn_out", "mlp_out"):
        with pytest.raises(
            SiteError, match=rf"{stream}.1 is refused: .*relative residual of {residual}, allowed 1e-06"
        ):
            resolve(model, stream)
    assert hooks.module_at(model, tp.Site(1)) == (tp.decoder_layers(model)[1], False)


def test_a_multiplier_that_only_this_checkpoint_has_is_seen():
    """Kept for a model and not for its class: Gemma 4's layer scalar is 1 in a fresh model."""
    model = tiny.model()
    assert resolve(model, "attn_out") is tp.decoder_layers(model)[1].self_attn
    with pytest.raises(SiteError, match="is refused"):
        resolve(patched(copy.deepcopy(model), lambda h, post: h + 0.9 * (post - h)), "attn_out")


def test_a_part_that_is_bypassed_is_not_the_site():
    """Fused code that calls `forward` past the hooks, or the weights past the module."""
    model = tiny.model()
    block = tp.decoder_layers(model)[1]
    attention = block.self_attn
    block.self_attn = Bypass(attention)
    assert resolve(model, "attn_out") is block.self_attn
    assert resolve(model, "attn_out", 0) is tp.decoder_layers(model)[0].self_attn
    handle = hooks.edit_activation(model, tp.Site(1, "attn_out"), torch.zeros_like)
    with tp.capture(model, [tp.Site(1, s) for s in ("resid_pre", "mlp_out", "resid_post")]) as acts, torch.no_grad():
        model(**tiny.batch())
    handle.remove()
    pre, mlp, post = acts.values()
    torch.testing.assert_close(post, pre + mlp)


class Bypass(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, *args, **kwargs):
        return self.attention.forward(*args, **kwargs)


def test_a_part_whose_edit_does_not_land_is_refused():
    """The block reads the part once and computes it again: what a hook puts in its place is lost."""
    model = tiny.model()
    for block in tp.decoder_layers(model):
        block.mlp.forward = Recomputed(block.mlp, block.mlp.forward)
        block.forward = Twice(block, block.forward)
    with pytest.raises(SiteError, match="is refused"):
        resolve(model, "mlp_out")


class Recomputed:
    def __init__(self, mlp, forward):
        self.mlp, self.original = mlp, forward
        self.kept = None

    def __call__(self, x):
        self.kept = self.original(x)
        return self.kept


class Twice:
    """`post − mlp(edited or not) + mlp(as computed)`."""

    def __init__(self, block, forward):
        self.block, self.original = block, forward

    def __call__(self, h, *args, **kwargs):
        seen = []
        handle = self.block.mlp.register_forward_hook(lambda _module, _args, output: seen.append(output))
        post = self.original(h, *args, **kwargs)
        handle.remove()
        return post - seen[-1] + self.block.mlp.forward.kept


def test_a_block_of_one_branch_has_one_site():
    model = mamba()
    assert resolve(model, "attn_out") is tp.decoder_layers(model)[1].mixer
    with pytest.raises(SiteError, match=r"mlp_out.1: MambaBlock has no submodule that computes it"):
        resolve(model, "mlp_out")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_beside_a_huge_stream_is_verified_and_still_tells(dtype):
    model = tiny.model().to(dtype)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1000)
    assert resolve(model, "mlp_out") is tp.decoder_layers(model)[1].mlp
    wrong = patched(tiny.model().to(dtype), lambda h, post: h + (post - h) * 0.8)
    with pytest.raises(SiteError, match="is refused"):
        resolve(wrong, "mlp_out")


def test_float32_norms_in_a_half_precision_model():
    """As `prepare_model_for_kbit_training` leaves it; a trainer runs it under autocast, and so does the probe."""
    model = tiny.model().to(torch.bfloat16)
    for module in model.modules():
        if "Norm" in type(module).__name__:
            module.float()
    assert resolve(model, "attn_out") is tp.decoder_layers(model)[1].self_attn


def test_a_probe_leaves_no_trace():
    model = tiny.model().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    seen = []
    handles = [model.model.layers[2].mlp.register_forward_hook(lambda *_, i=i: seen.append(i)) for i in range(3)]
    guard = tp.Steering(tp.Directions({tp.Site(2): torch.ones(32)}))
    d = tp.Directions({tp.Site(1, "attn_out"): torch.ones(32)})
    with guard.attach(model) as outer:
        random = torch.random.get_rng_state()
        with tp.Ablation(d).attach(model) as inner:
            assert blocks._FOUND[model]
            assert torch.equal(torch.random.get_rng_state(), random)
            assert [module.training for module in model.modules()] == modes
            assert (outer.passes, inner.passes, seen) == (0, 0, [])
            assert torch.is_grad_enabled()
            assert all(parameter.grad is None for parameter in model.parameters())
            model(**tiny.batch())
        assert (outer.passes, inner.passes, seen) == (1, 1, [0, 1, 2])
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_random_states_of_python_and_numpy_are_left():
    """BigBird draws from NumPy's in its forward pass."""
    model = patched(tiny.model(), lambda h, post: post + 0 * (np.random.rand() + random.random()))
    before = random.getstate(), np.random.get_state()[1].copy()
    resolve(model, "attn_out")
    assert (random.getstate(), list(np.random.get_state()[1])) == (before[0], list(before[1]))


def test_where_no_probe_can_run_it_is_said():
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(architectures.CONFIGS["llama"]())
    with pytest.raises(
        SiteError, match=r"attn_out.1 must be verified .* weights are on the meta device, without values"
    ):
        resolve(model, "attn_out")
    broken = tiny.model()
    broken.model.layers[2].mlp.forward = lambda x: 1 / 0
    with pytest.raises(SiteError, match=r"ended in ZeroDivisionError: division by zero; use resid_pre or resid_post"):
        resolve(broken, "attn_out")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in broken.modules())
