"""The oracle for guards: hidden states edited by hand, in a replaced `block.forward`, with dense d × d projectors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tropism as tp


@contextmanager
def edited_blocks(model: nn.Module, edits: dict[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside, block `layer` returns `edits[layer](h)` in place of `h`."""
    blocks = tp.decoder_layers(model)

    def replaced(original: Callable, edit: Callable[[Tensor], Tensor]) -> Callable:
        def forward(*args: object, **kwargs: object) -> object:
            output = original(*args, **kwargs)
            return edit(output) if isinstance(output, Tensor) else (edit(output[0]), *output[1:])

        return forward

    for layer, edit in edits.items():
        blocks[layer].forward = replaced(blocks[layer].forward, edit)
    try:
        yield
    finally:
        for layer in edits:
            del blocks[layer].forward


def projector(directions: tp.Directions, site: tp.Site) -> Tensor:
    """`P [d, d]`, dense, float64, from the singular vectors of the rows as found."""
    rows = directions.vectors[site].double()
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    right = right[sizes > 1e-6 * sizes.max()]
    return right.T @ right


class ProjectedBackward(torch.autograd.Function):
    """Identity forward; backward `g (I − s P)`."""

    @staticmethod
    def forward(ctx, h, P, strength):
        ctx.P, ctx.strength = P, strength
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient - ctx.strength * (gradient @ ctx.P.to(gradient)), None, None


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and every trainable parameter's gradient after one forward and one backward pass."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    """Gradients agree: each to `tolerance` of the largest entry of all."""
    assert a.keys() == b.keys()
    assert a
    scale = max(float(value.abs().max()) for value in a.values())
    for name in a:
        error = float((a[name] - b[name]).abs().max()) / scale
        assert error <= tolerance, f"{name} differs by {error:.2e} of the largest gradient"


def differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of any gradient, as a share of the largest entry."""
    scale = max(float(value.abs().max()) for value in a.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / scale


def inside_checkpoint(model):
    """Blocks as transformers up to 5.22 ran them: `__call__`, with its hooks, inside the checkpoint, and so twice."""
    model.config.use_cache = False  # as gradient_checkpointing_enable has it: a cache would grow in the recomputation
    for block in model.model.layers:
        kind = type(block)

        def call(self, *args, _kind=kind, **kwargs):
            return checkpoint(partial(_kind.__call__, self, **kwargs), *args, use_reentrant=False)

        block.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    return model
