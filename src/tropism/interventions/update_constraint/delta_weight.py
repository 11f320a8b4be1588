"""The space of the weight itself: `φ_i = ⟨U_i, s·B·A⟩`, which no choice of gauge of A and B can change.

With `U_i = B_u·diag(C_i)·A_u`, `P = B_uᵀB [R, r]` and `Q = A_uAᵀ [R, r]`, everything is rank-sized:

- `φ_i = s·C_i·rowsum(P ⊙ Q)`
- tangents `∂φ_i/∂A = s·Pᵀ·diag(C_i)·A_u` and `∂φ_i/∂B = s·B_u·diag(C_i)·Q`
- `⟨∂φ_i, ∂φ_l⟩ = s²·C_i·((A_uA_uᵀ) ⊙ (PPᵀ) + (B_uᵀB_u) ⊙ (QQᵀ))·C_lᵀ`
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tropism.adapters.factors import LoraFactors
from tropism.directions.parameter import ParameterDirections
from tropism.interventions.update_constraint.blocks import Block, Point


class DeltaWeightBlock(Block):
    """Pairs of one shape whose directions have equally many columns."""

    def __init__(
        self,
        pairs: Sequence[LoraFactors],
        owner: Sequence[int],
        directions: ParameterDirections,
        mix: Float[Tensor, "o k k"],
    ) -> None:
        super().__init__(pairs, owner)
        factors = [directions.factors[pair.place.weight] for pair in pairs]
        # The directions stay in float32, as saved; they are widened block by block when used.
        self.Bu = torch.stack([f.B for f in factors]).to(self.device)
        self.Au = torch.stack([f.A for f in factors]).to(self.device)
        C = torch.stack([directions.coefficients(pair.place.weight) for pair in pairs])
        self.C = (mix[list(owner)] @ C).to(self.device, self.wide)
        self.scale = torch.tensor([pair.scale for pair in pairs], dtype=self.wide, device=self.device)
        self.AuAu = self._au() @ self._au().mT
        self.BuBu = self._bu().mT @ self._bu()

    def _au(self) -> Tensor:
        return self.Au.to(self.wide)

    def _bu(self) -> Tensor:
        return self.Bu.to(self.wide)

    def point(self, A: Tensor, B: Tensor) -> Point:
        return Point(A, B, self._bu().mT @ B, self._au() @ A.mT)

    def value(self, at: Point) -> Float[Tensor, "n k"]:
        return self._weigh((at.P * at.Q).sum(-1))

    def gram(self, at: Point) -> Float[Tensor, "n k k"]:
        of_A = self.AuAu * (at.P @ at.P.mT) * self.live_A[:, None, None]
        of_B = self.BuBu * (at.Q @ at.Q.mT) * self.live_B[:, None, None]
        return (self.scale**2)[:, None, None] * (self.C @ (of_A + of_B) @ self.C.mT)

    def along(self, at: Point, gA: Tensor, gB: Tensor) -> Float[Tensor, "n k"]:
        return self._weigh((at.P * (self._au() @ gA.mT) + at.Q * (self._bu().mT @ gB)).sum(-1))

    def tangent(self, at: Point, a: Float[Tensor, "n k"]) -> tuple[Tensor, Tensor]:
        columns = (a.unsqueeze(1) @ self.C).mT * self.scale[:, None, None]  # [n, R, 1]
        tA = (columns * at.P).mT @ self._au() * self.live_A[:, None, None]
        tB = self._bu() @ (columns * at.Q) * self.live_B[:, None, None]
        return tA, tB

    def distance2(self, A0: Tensor, B0: Tensor, at: Point) -> Tensor:
        # BA − B₀A₀ = [B − B₀, B₀]·[A; A − A₀]: no difference of large numbers is taken, and nothing is d_out
        # × d_in.
        A0, B0 = A0.to(self.wide), B0.to(self.wide)
        X = torch.cat([at.B - B0, B0], dim=-1)
        Y = torch.cat([at.A, at.A - A0], dim=-2)
        squared = ((X.mT @ X) * (Y @ Y.mT)).sum((-1, -2)).clamp_min(0)
        return (self.scale**2 * squared).sum()

    def _weigh(self, per_column: Tensor) -> Tensor:
        """`s·C·z` for every pair: `[n, R] → [n, k]`."""
        weighed: Tensor = self.scale[:, None] * (self.C @ per_column.unsqueeze(-1)).squeeze(-1)
        return weighed
