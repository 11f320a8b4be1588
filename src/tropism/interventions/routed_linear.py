"""A linear whose weight gradient is weighted by row or token, while its input gradient stays whole.

The module's own forward pass has already run: only its place in the autograd graph is taken, so the output is
bit-identical, whatever computed it (autocast, a quantised base beneath), and no matmul is added.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def route_linear(
    linear: nn.Module, x: Tensor, y: Tensor, weights: Tensor, path: bool, reached: Callable[[], None]
) -> Tensor:
    """`y`, the output of `linear` on `x`, with a backward pass in which each position counts by its weight.

    With `g = ∂L/∂y [*, d_out]`, `x [*, d_in]`, weights `w [*, 1]` or `[B, 1, 1]`:

        ∂L/∂W = (w ⊙ g)ᵀ x        ∂L/∂x = g W, or w ⊙ (g W) with `path`

    `reached` is called in every backward pass through it.
    """
    routed: Tensor = _RoutedLinear.apply(  # type: ignore[no-untyped-call]
        x, linear.weight, linear.bias, y.detach(), weights, path, reached
    )
    return routed


class _RoutedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        weights: Tensor,
        path: bool,
        reached: Callable[[], None],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        # Not saved tensors but attributes: non-reentrant checkpointing recomputes what is saved, at a time when another
        # batch may have passed; attributes stay those of the pass that this node belongs to.
        ctx.weights, ctx.path, ctx.reached = weights, path, reached
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        ctx.reached()
        if torch.is_autocast_enabled(g.device.type):
            with torch.autocast(g.device.type, enabled=False):
                return _gradients(ctx, g)
        return _gradients(ctx, g)


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """In the dtype of `g`, as autograd does it for a linear under autocast. It runs for every linear of every step, on
    operands of an adapter's rank: what it costs is Python, so conversions that would change nothing are not called, and
    each product is laid out with its narrow side first, at which BLAS is several times faster.
    """
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    gx = gweight = gbias = None
    if needs_x:
        W = _as(weight, g.dtype)
        gx = (W.t() @ g.flatten(0, -2).t()).t().view(*g.shape[:-1], -1) if W.shape[1] < W.shape[0] else g @ W
        if ctx.path:
            gx = _weighted(gx, ctx.weights)
        gx = _as(gx, x.dtype)
    if needs_weight:
        wide, narrow = g.flatten(0, -2), _as(x, g.dtype).flatten(0, -2)
        weights = ctx.weights.expand(*g.shape[:-1], 1).flatten(0, -2)
        # The side whose width is the adapter's rank is weighted.
        if narrow.shape[1] <= wide.shape[1]:
            gweight = _as(_weighted(narrow, weights).t().mm(wide).t(), weight.dtype)
        else:
            gweight = _as(_weighted(wide, weights).t().mm(narrow), weight.dtype)
    if needs_bias:
        gbias = _weighted(g, ctx.weights).flatten(0, -2).sum(0).to(ctx.bias_dtype)
    return gx, gweight, gbias, None, None, None, None


def _weighted(t: Tensor, weights: Tensor) -> Tensor:
    """`w ⊙ t` in the wider of the two dtypes, then in the dtype of `t`: soft weights are not rounded to bfloat16."""
    return _as(t * weights, t.dtype)


def _as(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype == dtype else t.to(dtype)
