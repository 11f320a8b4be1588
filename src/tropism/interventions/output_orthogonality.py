"""An optional loss that keeps the two adapters' outputs apart: the mean squared cosine between them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism import hooks
from tropism.errors import AttachError, GuardNotInForce
from tropism.interventions.routing import lora_layers


def squared_cosine(first: Float[Tensor, "*batch d"], second: Float[Tensor, "*batch d"]) -> Float[Tensor, ""]:
    """The mean over positions of `cos²(y_r, y_f) = ⟨y_r, y_f⟩² / (‖y_r‖²‖y_f‖²)`, in float32 at least; in [0, 1].

    A position where either is zero counts as 0, with a gradient of zero: an adapter that adds nothing overlaps nothing.
    """
    a, b = (y if y.dtype == torch.float64 else y.float() for y in (first, second))
    inner, sizes = (a * b).sum(-1).square(), a.square().sum(-1) * b.square().sum(-1)
    return torch.where(
        sizes > 0, inner / sizes.where(sizes > 0, torch.ones_like(sizes)), torch.zeros_like(inner)
    ).mean()


@dataclass
class OutputOverlap:
    """The adapters' outputs of the last forward pass."""

    retain: dict[str, Tensor] = field(default_factory=dict)
    forget: dict[str, Tensor] = field(default_factory=dict)

    def loss(self) -> Float[Tensor, ""]:
        """The squared cosine, averaged over modules with both adapters; add `coefficient * loss()` to the loss.

        Raises `GuardNotInForce` where no forward pass has run since the last call. The outputs are let go of here.
        """
        if not self.retain or self.retain.keys() != self.forget.keys():
            raise GuardNotInForce("output overlap: no forward pass with both adapters has run since the last loss()")
        terms = [squared_cosine(self.retain[name], self.forget[name]) for name in self.retain]
        self.retain, self.forget = {}, {}
        return torch.stack(terms).mean()


@contextmanager
def output_overlap(model: nn.Module, *, retain: str = "retain", forget: str = "forget") -> Iterator[OutputOverlap]:
    """Inside, every forward pass with gradients records both adapters' outputs, before their scales.

    >>> with output_overlap(model) as overlap:  # doctest: +SKIP
    ...     loss = model(**batch).loss + 0.1 * overlap.loss()

    Off unless used: nothing of routing depends on it. Not under gradient checkpointing, where the outputs are let
    go of in
    the forward pass. Raises `AttachError` where no module has both adapters, or blocks are checkpointed.
    """
    overlap = OutputOverlap()
    both = {n: m for n, m in lora_layers(model) if retain in m.lora_B and forget in m.lora_B}
    if not both:
        raise AttachError(f"output_overlap: some module must have both adapters {retain!r} and {forget!r}, found none")
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise AttachError(
            "output_overlap: gradient checkpointing must be off, found it on; its loss needs every output"
        )
    handles = []

    def record(adapter: str, name: str) -> None:
        def keep(_x: Tensor, y: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                (overlap.retain if adapter == retain else overlap.forget)[name] = y
            return y

        handles.append(hooks.edit_linear(both[name].lora_B[adapter], keep))

    try:
        for name in both:
            for adapter in (retain, forget):
                record(adapter, name)
        yield overlap
    finally:
        for handle in handles:
            handle.remove()
