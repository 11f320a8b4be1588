"""Edits of what was learned, after training: Safe LoRA's projection, and plain shrinkage as its control.

Both act on the adapter's `ΔW = s·B·A` through B alone, and give it back bit for bit on exit; to keep an
edited adapter, save it while the guard is attached. A guard in training is to be compared with them, because
merely having learned less also protects.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism.adapters.factors import LoraFactors
from tropism.adapters.parts import parts_of_model, require
from tropism.adapters.read import live_factors, read_adapter, total_norm
from tropism.directions.parameter import ParameterDirections
from tropism.errors import AttachError, UsageError
from tropism.interventions.base import Attachment, Intervention, Place
from tropism.site import base_model


@dataclass(frozen=True)
class SafeLoRA(Intervention):
    """Project what was learned onto the alignment's column space where the two disagree: `B ← C·B`.

    `V = U_W` is the alignment's own change of the weight (a parameter direction, factored) and `C = V·Vᵀ /
    ‖V‖_F`, or with `exact` the orthogonal projection onto the columns of `V`. A weight is projected where the
    cosine of `ΔW` and `C·ΔW` is below `threshold`; the others stay. Every direction must meet a LoRA weight.

    Raises on attach: `AttachError` for a direction that meets no LoRA weight, and for an adapter of which `s·B·A` is
    not all that was learned (`docs/works-with.md`).

    Source: Safe LoRA (Hsu et al., 2024), whose V is aligned minus base weights; any parameter directions
    serve here, and nothing of the size of W is made.
    """

    directions: ParameterDirections
    """The alignment: one parameter direction at each weight."""
    threshold: float = 0.35
    """Project a weight where the cosine of `ΔW` and its projection is below this."""
    exact: bool = False
    """Project orthogonally onto the columns of `V`, instead of by `V·Vᵀ / ‖V‖`."""

    place: ClassVar[Place] = "weights"

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise UsageError(f"SafeLoRA.threshold is a cosine, in [-1, 1], found {self.threshold!r}")
        if self.directions.k != 1:
            raise UsageError(
                f"SafeLoRA.directions must be one direction at each weight, found {self.directions.k}; for a "
                "difference of weights use parameter_directions(aligned, minus=base, subspace=False)"
            )

    @property
    def at_evaluation(self) -> str:
        return "edits the adapter's weights while attached"

    def install(self, attachment: Attachment) -> None:
        learned = _learned(attachment.model, "SafeLoRA")
        met = {held.place.weight for held in learned}
        unmatched = [weight for weight in self.directions.weights if weight not in met]
        if unmatched:
            raise AttachError(
                f"SafeLoRA: every direction must match a LoRA weight; unmatched are {', '.join(unmatched[:8])}"
            )
        projected = considered = 0
        for held in learned:
            if held.place.weight in self.directions.factors:
                considered += 1
                B = self._projected(held)
                if B is not None:
                    projected += 1
                    _replace(attachment, held.B, B)
        attachment.meter(lambda: {"guard/safe_lora/share_projected": projected / considered})

    def _projected(self, held: LoraFactors) -> Float[Tensor, "d_out r"] | None:
        """`C·B`, or None where what was learned agrees with the alignment, or nothing was learned."""
        f = self.directions.factors[held.place.weight]
        if (f.B.shape[0], f.A.shape[1]) != held.shape:
            raise AttachError(
                f"SafeLoRA: the direction at {held.place.weight} is {f.B.shape[0]}x{f.A.shape[1]}, the model's weight "
                f"{held.shape[0]}x{held.shape[1]}; the direction was made on another model"
            )
        scaled = f.B.double() * self.directions.coefficients(held.place.weight)[0]
        A_u = f.A.double()
        A, B = held.wide()
        if self.exact:
            # The columns of V = B_u·A_u: a basis from the thin factors, dependent columns dropped.
            left, size, _ = torch.linalg.svd(scaled @ torch.linalg.qr(A_u.T).R.T, full_matrices=False)
            Q = left[:, size > 1e-10 * size[:1]]
            CB = Q @ (Q.T @ B)
        else:
            G = A_u @ A_u.T
            norm = ((scaled.T @ scaled) * G).sum().sqrt()
            CB = scaled @ (G @ (scaled.T @ B)) / norm
        G = A @ A.T
        inner = ((CB.T @ B) * G).sum()
        lengths = (((CB.T @ CB) * G).sum() * ((B.T @ B) * G).sum()).sqrt()
        agrees = bool(lengths == 0 or inner / lengths >= self.threshold)
        return None if agrees else CB


@dataclass(frozen=True)
class Shrinkage(Intervention):
    """The control of having learned less: `ΔW ← γ·ΔW` at every adapted weight.

    γ is `factor`, or is chosen so that `sqrt(Σ_W ‖ΔW‖²)` equals `norm` (that of a guarded run, see
    `learned_norm`); exactly one is given. Raises on attach: `UsageError` where `norm` is more than was
    learned.
    """

    factor: float | None = None
    """Multiply what was learned by this, in [0, 1]."""
    norm: float | None = None
    """Shrink what was learned to this norm; in an experiment file, to the norm of the condition named."""

    place: ClassVar[Place] = "weights"

    def __post_init__(self) -> None:
        if (self.factor is None) == (self.norm is None):
            raise UsageError(
                f"Shrinkage takes either factor or norm, found factor={self.factor!r} and norm={self.norm!r}"
            )
        if self.factor is not None and not 0 <= self.factor <= 1:
            raise UsageError(f"Shrinkage.factor must be in [0, 1], found {self.factor!r}")
        if self.norm is not None and not self.norm >= 0:
            raise UsageError(f"Shrinkage.norm must be at least 0, found {self.norm!r}")

    @property
    def at_evaluation(self) -> str:
        return "edits the adapter's weights while attached"

    def install(self, attachment: Attachment) -> None:
        learned = _learned(attachment.model, "Shrinkage")
        gamma = self.factor
        if self.norm is not None:
            norm = total_norm(learned)
            if self.norm > norm:
                raise UsageError(
                    f"Shrinkage.norm must be at most what was learned ({norm:.4g}), found "
                    f"{self.norm:.4g}; shrink the adapter that learned more"
                )
            gamma = self.norm / norm if norm else 0.0
        assert gamma is not None
        for held in learned:
            _replace(attachment, held.B, held.wide()[1] * gamma)
        kept = gamma
        attachment.meter(lambda: {"guard/shrinkage/share_kept": kept})


def adapter_norm(folder: str | Path) -> float:
    """`sqrt(Σ_W ‖s·B·A‖²)` of a saved adapter; raises `DirectionsError` where that is not all it learned."""
    return total_norm(read_adapter(folder, who="adapter_norm").weights.values())


def learned_norm(model: nn.Module) -> float:
    """`sqrt(Σ_W ‖s·B·A‖²)` over the adapted weights of a PEFT model's active adapters.

    Raises `AttachError` where there are none, or where that is not all they learned.
    """
    require("read", parts_of_model(model), "learned_norm", AttachError)
    return total_norm(_active(model))


def _learned(model: nn.Module, who: str) -> list[LoraFactors]:
    """The active adapters' factors, to be edited; raises `AttachError` where an edit of B would not be exact."""
    from peft.tuners.lora import LoraLayer

    require("edit", parts_of_model(model), who, AttachError)
    learned = _active(model)
    modules: dict[str, Any] = dict(base_model(model).named_modules())
    for held in learned:
        layer = modules[held.place.module]
        if isinstance(layer, LoraLayer) and (layer.merged or layer.disable_adapters):
            raise AttachError(
                f"{who}: the adapter at {held.place.module} is merged or disabled, so that an edit would change nothing; "
                "unmerge and enable it first"
            )
    return learned


def _active(model: nn.Module) -> list[LoraFactors]:
    learned = list(live_factors(model))
    if not learned:
        raise AttachError(f"{type(model).__name__} has no active LoRA adapter, so there is nothing learned to edit")
    return learned


@dataclass(frozen=True, eq=False)
class _Restore:
    give_back: Callable[[], None]

    def remove(self) -> None:
        self.give_back()


def _replace(attachment: Attachment, factor: Tensor, value: Tensor) -> None:
    """Put a value in place of a live factor's until the guard is detached; rounded to its dtype, on its device."""
    held = factor.detach()  # shares the parameter's memory, also where it is one expert's part of it
    before = held.clone()

    def give_back() -> None:
        held.copy_(before)

    held.copy_(value.to(held.dtype))
    attachment.own(_Restore(give_back))
