"""A loss of the next token and its gradient, a chunk of positions at a time, so that no `[n, V]` tensor is ever whole.

For the hidden states `h [n, d]` before the output embedding and `p = softmax(f(head(h)))`, the loss is `−Σ log p(target)`, or
`Σ KL(p ‖ p_base)`. What `f` is, the
part of a model's forward pass behind its head, is found by running the model with known numbers in the head's place:
`f(z) = s·z` (Granite, Cohere), `f(z) = c·tanh(z/c)` (Gemma 2), both, or neither. A model whose `f` is none of these has none.

`torch.nn.functional.linear_cross_entropy` (torch 2.13) and liger-kernel's fused loss do the same for a bare weight; here the head
is called as a module, so that an adapter on it, a bias, a quantised weight and autocast are in force.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from tropism import hooks
from tropism.blocks import probe_inputs, quiet_hooks, untouched
from tropism.site import base_model

NUMBERS = 2**25
"""Logits in a chunk: 128 MiB in float32."""
_HIGHEST = 60.0


@dataclass(frozen=True)
class Tail:
    """What a model does to its head's output: `f(z) = s·z`, then `c·tanh(s·z/c)` where there is a cap `c`."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, z: Tensor) -> Tensor:
        scaled = z if self.scale == 1.0 else z * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


def find_tail(model: nn.Module) -> Tail | None:
    """Return what the model does behind its head, or None where that is no `Tail`, weights are sharded or the head is not linear.

    The head's output is replaced by numbers from −60 to 60, in one pass over a few tokens, and the constants are looked
    for among the numbers of the configuration; so a softcap is found although an untrained model's logits are near zero.
    """
    inner: Any = base_model(model)
    head = inner.get_output_embeddings()
    if any(isinstance(weight, DTensor) for weight in model.parameters()) or not hasattr(head, "out_features"):
        return None
    given: list[Tensor] = []

    def known(_x: Tensor, y: Tensor) -> Tensor:
        ramp = torch.linspace(-_HIGHEST, _HIGHEST, y.shape[-1], device=y.device, dtype=torch.float32)
        given.append(ramp.to(y.dtype).expand_as(y))
        return given[-1]

    handle = hooks.edit_linear(head, known)
    try:
        with untouched(model):
            logits = inner(**probe_inputs(inner)).logits
    finally:
        handle.remove()
    if len(given) != 1 or given[0].shape != logits.shape:
        return None
    return _fit(given[0], logits, _numbers(inner.config.get_text_config(decoder=True).to_dict()))


def _fit(z: Tensor, logits: Tensor, constants: Sequence[float]) -> Tail | None:
    tolerance = 2 * max(torch.finfo(z.dtype).eps, torch.finfo(logits.dtype).eps)
    wide, found = z.double(), logits.double()
    step = max(1, z.shape[-1] // 256)
    few, few_found = wide[0, 0, ::step], found[0, 0, ::step]

    def agrees(tail: Tail, x: Tensor, y: Tensor) -> bool:
        return torch.allclose(tail(x), y, rtol=4 * tolerance, atol=tolerance)

    scales = [1.0, *constants, *(1 / c for c in constants)]
    for cap in (None, *(c for c in constants if c > 0)):
        for scale in scales:
            tail = Tail(scale, cap)
            if agrees(tail, few, few_found):
                return tail if agrees(tail, wide, found) else None
    return None


def _numbers(config: Any) -> list[float]:
    """Every number that a configuration holds, but zero and one."""
    return sorted({abs(x) for x in _leaves(config)} - {0.0, 1.0})


def _leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield float(value)


def fit(head: Any, h: Tensor, numbers: int) -> bool:
    """Whether the logits of `h [n, d]` are one chunk, so that to take the loss at the head would hold no fewer."""
    return h.shape[0] * int(head.out_features) <= numbers


def needs_logits(head: nn.Module, hooks_of_ours: int) -> bool:
    """Whether something at the head must see all positions at once: another's hook, dropout, a hook on its weights' gradient."""
    return (
        hooks.hung_on(head) > hooks_of_ours
        or any(isinstance(part, nn.Dropout) and part.p > 0 and part.training for part in head.modules())
        or any(weight._backward_hooks for weight in head.parameters())
    )


def summed_loss(head: Any, tail: Tail, h: Tensor, targets: Tensor, numbers: int = NUMBERS) -> Tensor:
    """`−Σ log p(target)` over `h [n, d]` and `targets [n]`, in float32 (float64 for float64), differentiable once.

    The gradient with respect to `h` and to the head's trained weights is computed with the loss, chunk by chunk; at most
    `numbers` logits are held at a time.
    """
    return _summed(_CrossEntropy(head, tail, targets), head, h, numbers)


def summed_divergence(
    head: Any, tail: Tail, h: Tensor, base_head: Any, base_h: Tensor, numbers: int = NUMBERS
) -> Tensor:
    """`Σ KL(p ‖ p_base) = Σ p·(log p − log p_base)` in nats, as `summed_loss`.

    `p` is what `head` makes of `h [n, d]`, `p_base` what `base_head` makes of `base_h [n, d]`, which nothing is learned from.
    """
    return _summed(_Divergence(head, tail, base_head, base_h), head, h, numbers // 2)


class _Chunk(Protocol):
    """The loss of the positions `here`, whose hidden states are `x`."""

    def __call__(self, x: Tensor, here: slice) -> Tensor: ...


@dataclass(frozen=True)
class _CrossEntropy:
    head: nn.Module
    tail: Tail
    targets: Tensor

    def __call__(self, x: Tensor, here: slice) -> Tensor:
        logits = _logits(self.head, self.tail, x)
        return F.cross_entropy(logits, self.targets[here].to(logits.device), reduction="sum")


@dataclass(frozen=True)
class _Divergence:
    head: nn.Module
    tail: Tail
    base_head: nn.Module
    base_h: Tensor

    def __call__(self, x: Tensor, here: slice) -> Tensor:
        log_p = _logits(self.head, self.tail, x).log_softmax(-1)
        with torch.no_grad(), quiet_hooks(self.base_head):
            log_base = _logits(self.base_head, self.tail, self.base_h[here]).log_softmax(-1)
        return F.kl_div(log_base, log_p, log_target=True, reduction="sum")


def _logits(head: nn.Module, tail: Tail, h: Tensor) -> Tensor:
    z = head(h.unsqueeze(0)).squeeze(0)
    return tail(z if z.dtype == torch.float64 else z.float())


def _summed(chunk: _Chunk, head: Any, h: Tensor, numbers: int) -> Tensor:
    weights = [weight for weight in head.parameters() if weight.requires_grad]
    rows = max(1, numbers // int(head.out_features))
    total: Tensor = _Summed.apply(chunk, rows, torch.is_grad_enabled(), h, *weights)  # type: ignore[no-untyped-call]
    return total


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chunk: _Chunk, rows: int, learns: bool, h: Tensor, *weights: Tensor) -> Tensor:
        wide = torch.float64 if h.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=wide, device=h.device)
        needed = [given for given in (h, *weights) if learns and given.requires_grad]
        gradients = [torch.zeros_like(given) for given in needed]
        ctx.needed = [given.requires_grad and learns for given in (h, *weights)]
        for start in range(0, h.shape[0], rows):
            here = slice(start, start + rows)
            with torch.set_grad_enabled(learns):
                x = h[here].detach().requires_grad_(learns and h.requires_grad)
                loss = chunk(x, here)
            total += loss.detach().to(total.device)
            if needed:
                with_respect_to = [x if given is h else given for given in needed]
                found = torch.autograd.grad(loss, with_respect_to)
                for given, gradient, part in zip(needed, gradients, found, strict=True):
                    (gradient[here] if given is h else gradient).add_(part)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        held = iter(ctx.saved_tensors)
        gradients = [next(held) * upstream if needed else None for needed in ctx.needed]
        return None, None, None, *gradients
