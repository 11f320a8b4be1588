"""Weights that are trained themselves, without an adapter: `φ_i = ⟨U_i, W⟩`, which is linear in `W`.

With `U_i = B_u·diag(C_i)·A_u` and `P = B_uᵀW [R, d_in]`:

- `φ_i = C_i·rowsum(P ⊙ A_u)`, the tangent `∂φ_i/∂W = U_i`, and `⟨∂φ_i, ∂φ_l⟩ = C_i·((A_uA_uᵀ) ⊙ (B_uᵀB_u))·C_lᵀ`

A weight takes the place of the factor B of a pair whose A is empty.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism.adapters.factors import LoraFactors, Place
from tropism.interventions.update_constraint.blocks import Point
from tropism.interventions.update_constraint.delta_weight import DeltaWeightBlock


def whole_weight(module: nn.Module, name: str) -> LoraFactors | None:
    """A linear layer's own weight as a pair that the constraint can hold; None where it is not trained."""
    weight = module.weight if isinstance(module, nn.Linear) else None
    if weight is None or not weight.requires_grad:
        return None
    return LoraFactors(weight.new_empty(0, weight.shape[1]), weight, 1.0, place=Place(name, name, ""))


def is_whole_weight(pair: LoraFactors) -> bool:
    """Whether a pair is a weight that is trained itself."""
    return pair.held_a.shape[0] == 0


class WholeWeightBlock(DeltaWeightBlock):
    """Weights of one shape; the constraint holds `W` itself to its anchor."""

    def point(self, A: Tensor, B: Tensor) -> Point:
        return Point(A, B, self._bu().mT @ B, A)

    def value(self, at: Point) -> Float[Tensor, "n k"]:
        return self._weigh((at.P * self._au()).sum(-1))

    def gram(self, at: Point) -> Float[Tensor, "n k k"]:
        return self.C @ (self.AuAu * self.BuBu * self.live_B[:, None, None]) @ self.C.mT

    def along(self, at: Point, gA: Tensor, gB: Tensor) -> Float[Tensor, "n k"]:
        return self._weigh(((self._bu().mT @ gB) * self._au()).sum(-1))

    def tangent(self, at: Point, a: Float[Tensor, "n k"]) -> tuple[Tensor, Tensor]:
        columns = (a.unsqueeze(1) @ self.C).mT
        return torch.zeros_like(at.A), self._bu() @ (columns * self._au()) * self.live_B[:, None, None]

    def distance2(self, A0: Tensor, B0: Tensor, at: Point) -> Tensor:
        return (at.B - B0.to(self.wide)).square().sum()
