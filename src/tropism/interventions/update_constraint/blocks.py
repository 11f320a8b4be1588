"""What both spaces share: pairs of one shape stacked into a block, read in float64 and written back.

A block of `n` pairs has `k` functions `φ_i(A, B)` per pair, and knows their values, their tangents' inner
products and how to move along tangents. All products are batched over the pairs, so a step costs a few dozen
kernels and not thousands. Sharded factors (FSDP2) are gathered: they are rank-sized, and every rank then
computes the same numbers.
"""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from tropism.adapters.factors import LoraFactors, whole


class Point(NamedTuple):
    """Where the factors of a block are: `A [n, r, d_in]`, `B [n, d_out, r]`, wide, and what a space derives
    from them.
    """

    A: Tensor
    B: Tensor
    P: Tensor
    Q: Tensor


class Block(abc.ABC):
    """`n` pairs of one shape, with `k` constraints each; `owner [n]` says in which row of the totals they
    count.
    """

    def __init__(self, pairs: Sequence[LoraFactors], owner: Sequence[int]) -> None:
        self.pairs = list(pairs)
        self.device = pairs[0].A.device
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64  # MPS has no float64
        self.owner = torch.tensor(list(owner), device=self.device)
        self.live_A = self.live_B = torch.ones(len(pairs), dtype=self.wide, device=self.device)
        self.start = self.read()

    @abc.abstractmethod
    def point(self, A: Tensor, B: Tensor) -> Point:
        """The factors with what is derived from them."""

    @abc.abstractmethod
    def value(self, at: Point) -> Float[Tensor, "n k"]:
        """`φ_i` of every pair."""

    @abc.abstractmethod
    def gram(self, at: Point) -> Float[Tensor, "n k k"]:
        """`⟨∂φ_i, ∂φ_l⟩` over the live factors of every pair."""

    @abc.abstractmethod
    def along(self, at: Point, gA: Tensor, gB: Tensor) -> Float[Tensor, "n k"]:
        """`⟨∂φ_i, g⟩` of every pair; `gA [n, r, d_in]`, `gB [n, d_out, r]`."""

    @abc.abstractmethod
    def tangent(self, at: Point, a: Float[Tensor, "n k"]) -> tuple[Tensor, Tensor]:
        """`Σ_i a_i·∂φ_i` over the live factors, as `(tA [n, r, d_in], tB [n, d_out, r])`."""

    @abc.abstractmethod
    def distance2(self, A0: Tensor, B0: Tensor, at: Point) -> Tensor:
        """`‖θ − θ₀‖²` in this space, summed over the pairs; a scalar."""

    def moved(self, at: Point, a: Float[Tensor, "n k"]) -> Point:
        """The point `θ − Σ_i a_i·∂φ_i`."""
        tA, tB = self.tangent(at, a)
        return self.point(at.A - tA, at.B - tB)

    def here(self) -> Point:
        """Where the factors are now."""
        A, B = self.read()
        return self.point(A.to(self.wide), B.to(self.wide))

    def read(self) -> tuple[Tensor, Tensor]:
        """The factors stacked, in their own dtype."""
        return stacked([pair.A for pair in self.pairs]), stacked([pair.B for pair in self.pairs])

    def write(self, at: Point) -> None:
        """Put the factors where `at` is, rounded to their own dtype."""
        store([pair.A for pair in self.pairs], at.A)
        store([pair.B for pair in self.pairs], at.B)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """The gradients stacked, wide; where a factor has none (frozen, or routed away) zero, and it is not
        live.
        """
        self.live_A, gA = self._gradient([pair.A for pair in self.pairs], [pair.gradient_a for pair in self.pairs])
        self.live_B, gB = self._gradient([pair.B for pair in self.pairs], [pair.gradient_b for pair in self.pairs])
        return gA, gB

    def write_gradients(self, gA: Tensor, gB: Tensor) -> None:
        """Put gradients in place of the present ones, of live factors only."""
        for present, g in (
            ([pair.gradient_a for pair in self.pairs], gA),
            ([pair.gradient_b for pair in self.pairs], gB),
        ):
            live = [index for index, gradient in enumerate(present) if gradient is not None]
            if len(live) == len(present):
                store(present, g)
            elif live:
                store([present[index] for index in live], g[live])

    def _gradient(self, factors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        live = [float(gradient is not None) for gradient in gradients]
        present = [
            factor if gradient is None else gradient for factor, gradient in zip(factors, gradients, strict=True)
        ]
        g = stacked(present).to(self.wide)
        if all(live):
            return torch.ones_like(self.live_A), g
        mask = torch.tensor(live, dtype=self.wide, device=self.device)
        return mask, g * mask[:, None, None]


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """One `[n, ...]` tensor, sharded ones gathered."""
    return torch.stack([whole(tensor) for tensor in tensors])


def store(targets: Sequence[Tensor | None], values: Tensor) -> None:
    """Copy row `i` of `values` into `targets[i]`; a sharded target takes its own shard."""
    into: list[Tensor] = []
    rows: list[Tensor] = []
    for target, value in zip(targets, values.unbind(0), strict=True):
        assert target is not None
        if isinstance(target, DTensor):
            replicated = DTensor.from_local(
                value.to(target.dtype),
                target.device_mesh,
                [Replicate()] * target.device_mesh.ndim,
                run_check=False,
            )
            shard: Any = target.detach()
            into.append(shard.to_local())
            rows.append(replicated.redistribute(placements=target.placements).to_local())
        else:
            into.append(target.detach())
            rows.append(value)
    torch._foreach_copy_(into, rows)
