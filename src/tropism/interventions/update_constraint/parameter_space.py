"""The space of the factors themselves, as published: `φ_i = ⟨u_A, A⟩ + ⟨u_B, B⟩`.

It means something only where the trained adapter and the direction's adapter began from the same A; the
factors are not identified otherwise. Tangents are the directions, so one correction is exact.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tropism.adapters.factors import LoraFactors
from tropism.directions.parameter import ParameterDirections
from tropism.interventions.update_constraint.blocks import Block, Point


def raw_direction(directions: ParameterDirections, weight: str) -> tuple[Tensor, Tensor]:
    """`u_A [k, r, d_in]` and `u_B [k, d_out, r]`, float64: the sources' own factors, combined; all of one
    rank.
    """
    f = directions.factors[weight]
    r = max(f.ranks)
    uA = torch.zeros(directions.k, r, f.A.shape[1], dtype=torch.float64)
    uB = torch.zeros(directions.k, f.B.shape[0], r, dtype=torch.float64)
    first = 0
    for source, rank in enumerate(f.ranks):
        if rank:
            A, B = f.A[first : first + rank].double(), f.B[:, first : first + rank].double()
            uA += directions.combination[:, source, None, None] * A
            uB += directions.combination[:, source, None, None] * B
        first += rank
    return uA, uB


class ParameterBlock(Block):
    """Pairs of one shape; `u_A [n, k, r, d_in]`, `u_B [n, k, d_out, r]`, of the size of the adapter."""

    def __init__(
        self,
        pairs: Sequence[LoraFactors],
        owner: Sequence[int],
        directions: ParameterDirections,
        mix: Float[Tensor, "o k k"],
    ) -> None:
        super().__init__(pairs, owner)
        raw = [raw_direction(directions, pair.place.weight) for pair in pairs]
        M = mix[list(owner)]
        self.uA = torch.einsum("nij,njra->nira", M, torch.stack([uA for uA, _ in raw])).to(self.device, self.wide)
        self.uB = torch.einsum("nij,njbr->nibr", M, torch.stack([uB for _, uB in raw])).to(self.device, self.wide)
        self.gram_A = self.uA.flatten(2) @ self.uA.flatten(2).mT
        self.gram_B = self.uB.flatten(2) @ self.uB.flatten(2).mT

    def point(self, A: Tensor, B: Tensor) -> Point:
        empty = A.new_zeros(0)
        return Point(A, B, empty, empty)

    def value(self, at: Point) -> Float[Tensor, "n k"]:
        return self.along(at, at.A, at.B)

    def gram(self, at: Point) -> Float[Tensor, "n k k"]:
        return self.gram_A * self.live_A[:, None, None] + self.gram_B * self.live_B[:, None, None]

    def along(self, at: Point, gA: Tensor, gB: Tensor) -> Float[Tensor, "n k"]:
        in_A = self.uA.flatten(2) @ gA.flatten(1).unsqueeze(-1)
        in_B = self.uB.flatten(2) @ gB.flatten(1).unsqueeze(-1)
        return (in_A + in_B).squeeze(-1)

    def tangent(self, at: Point, a: Float[Tensor, "n k"]) -> tuple[Tensor, Tensor]:
        tA = (a.unsqueeze(1) @ self.uA.flatten(2)).view_as(at.A) * self.live_A[:, None, None]
        tB = (a.unsqueeze(1) @ self.uB.flatten(2)).view_as(at.B) * self.live_B[:, None, None]
        return tA, tB

    def distance2(self, A0: Tensor, B0: Tensor, at: Point) -> Tensor:
        return (at.A - A0.to(self.wide)).square().sum() + (at.B - B0.to(self.wide)).square().sum()
