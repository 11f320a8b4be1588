"""What happens around an optimiser step: project the gradients, let the optimiser step, correct the weights.

Before: `g ← g − Σ a_i ∂φ_i`, `a = M⁻¹⟨∂φ, g⟩`, `M_il = ⟨∂φ_i, ∂φ_l⟩`, so that the optimiser's moments stay
where updates are allowed. After: Newton's steps `θ ← θ − Σ a_i ∂φ_i`, `a = M⁻¹(φ − c)`, so that φ stays at
its anchor `c` whatever momentum, preconditioning, weight decay and rounding did. Sums run over the weights
that share a constraint (`owner`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tropism.adapters.factors import LoraFactors
from tropism.directions.parameter import ParameterDirections
from tropism.errors import AttachError
from tropism.interventions.base import Attachment
from tropism.interventions.state import Stateful
from tropism.interventions.update_constraint.blocks import Block, Point
from tropism.interventions.update_constraint.delta_weight import DeltaWeightBlock
from tropism.interventions.update_constraint.ledger import Entry, Ledger
from tropism.interventions.update_constraint.options import Options
from tropism.interventions.update_constraint.parameter_space import ParameterBlock, raw_direction
from tropism.interventions.update_constraint.whole_weight import WholeWeightBlock, is_whole_weight

NEWTON_STEPS = 3
"""φ is bilinear in the factors: each step squares the remaining error, and three reach rounding from any sane
update.
"""


def constraint_of(attachment: Attachment) -> "Constraint":
    """The live update constraint of an attachment (its ledger, its anchor); raises `AttachError` where there
    is none.
    """
    held = [part for part in attachment.kept if isinstance(part, Constraint)]
    if len(held) != 1:
        raise AttachError(f"constraint_of: this attachment holds {len(held)} update constraints, expected exactly one")
    return held[0]


class Constraint(Stateful):
    """A constraint in force on one model and one optimiser: the anchor, the ledger, the two hooks' work."""

    def __init__(self, options: Options, directions: ParameterDirections, pairs: Sequence[LoraFactors]) -> None:
        self.options = options
        weights = list(directions.weights)
        self.owners = 1 if options.per == "model" else len(weights)
        owner_of = {weight: 0 if options.per == "model" else index for index, weight in enumerate(weights)}
        self.k = directions.k
        mix = _orthonormalising(directions, options, [owner_of[weight] for weight in weights], self.owners)
        grouped: dict[tuple[Any, ...], list[LoraFactors]] = {}
        for pair in pairs:
            columns = directions.factors[pair.place.weight].B.shape[1]
            key = (
                tuple(pair.A.shape),
                tuple(pair.B.shape),
                columns,
                pair.A.dtype,
                pair.B.dtype,
                pair.A.device,
            )
            grouped.setdefault(key, []).append(pair)
        self.blocks: list[Block] = [
            _block_class(options, group)(group, [owner_of[pair.place.weight] for pair in group], directions, mix)
            for group in grouped.values()
        ]
        self.home, self.wide = self.blocks[0].device, self.blocks[0].wide
        promised = options.when == "update" and options.mode != "soft"
        dtypes = ", ".join(sorted({str(pair.B.dtype).removeprefix("torch.") for pair in pairs}))
        self.ledger = Ledger(options.tolerance if promised else None, dtypes)
        self.steps = 0
        self.anchor = self._value([block.here() for block in self.blocks])
        self._before: list[Point] | None = None
        self._removed = self._cosine = torch.zeros((), dtype=self.wide, device=self.home)

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Project the gradients; runs after accumulation, unscaling and clipping, as the optimiser's first
        act.
        """
        if any(callable(value) for value in (*args[1:], *kwargs.values())):
            raise AttachError(
                "UpdateConstraint: optimizer.step(closure) computes its gradients inside the step, where "
                "they cannot be projected; call backward() first and step() without a closure"
            )
        self._before = None
        # An optimiser that takes part in loss scaling steps even when its gradients overflowed, and then
        # changes nothing.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and bool(overflow):
            return
        points = [block.here() for block in self.blocks]
        gradients = [block.gradients() for block in self.blocks]
        along = self._sum([b.along(p, *g) for b, p, g in zip(self.blocks, points, gradients, strict=True)])
        M = self._sum([b.gram(p) for b, p in zip(self.blocks, points, strict=True)])
        size2 = sum(
            ((gA.square().sum() + gB.square().sum()).to(self.home) for gA, gB in gradients),
            along.new_zeros(()),
        )
        removed = along.clamp_min(0) if self.options.mode == "one_sided" else along  # descent moves against g
        a = self.options.strength * _solve(M, removed)
        for block, point, (gA, gB) in zip(self.blocks, points, gradients, strict=True):
            tA, tB = block.tangent(point, self._spread(block, a))
            block.write_gradients(gA - tA, gB - tB)
        self._removed = _ratio((M @ a.unsqueeze(-1)).squeeze(-1).mul(a).sum(), size2)
        cosines = _ratio(along.sum(0), (size2 * M.diagonal(dim1=-2, dim2=-1).sum(0)).sqrt())
        self._cosine = cosines[cosines.abs().argmax()]
        self._before = points

    @torch.no_grad()
    def after_step(self) -> bool:
        """Correct the weights and enter the step in the ledger; False where the optimiser skipped its
        step.
        """
        if self._before is None:
            return False
        before, self._before = self._before, None
        stepped = [block.here() for block in self.blocks]
        value = self._value(stepped)
        figures = [self._leak(value, self._value(before), stepped, [(p.A, p.B) for p in before])]
        corrected = stepped
        if self.options.when == "update":
            target = value - self.options.strength * (value - self.anchor)
            if self.options.mode == "one_sided":
                target = torch.maximum(value, self.anchor)
            corrected = self._correct(stepped, target)
        value = self._value(corrected)
        figures.append(self._leak(value, self._value(before), corrected, [(p.A, p.B) for p in before]))
        figures.append(self._leak(value, self.anchor, corrected, [block.start for block in self.blocks]))
        self.steps += 1
        # The one synchronisation of a step.
        numbers = torch.stack([*figures, self._removed, self._cosine]).tolist()
        self.ledger.record(Entry(self.steps, *numbers))
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """The anchor, the step and where the factors began: what a checkpoint needs for the constraint to go
        on.
        """
        state = {"anchor": self.anchor.cpu(), "steps": torch.tensor(self.steps)}
        for block in self.blocks:
            for index, pair in enumerate(block.pairs):
                for factor, start in zip("AB", block.start, strict=True):
                    state[f"start/{pair.place.weight}/{pair.place.adapter}/{factor}"] = start[index].cpu().clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint; raises `AttachError` where it is another constraint's."""
        ours = self.state_dict()
        strange = sorted(set(ours) ^ set(state)) or [key for key in ours if ours[key].shape != state[key].shape]
        if strange:
            raise AttachError(
                f"UpdateConstraint: the saved state is of another constraint ({len(strange)} entries differ, "
                f"first {strange[0]!r}); resume with the directions, adapter and options that the checkpoint "
                "was made with"
            )
        self.anchor = state["anchor"].to(self.anchor)
        self.steps = int(state["steps"])
        for block in self.blocks:
            names = [f"start/{pair.place.weight}/{pair.place.adapter}" for pair in block.pairs]
            A, B = (torch.stack([state[f"{name}/{factor}"] for name in names]) for factor in "AB")
            block.start = (A.to(block.start[0]), B.to(block.start[1]))

    def _correct(self, points: list[Point], target: Tensor) -> list[Point]:
        for _ in range(NEWTON_STEPS):
            M = self._sum([block.gram(point) for block, point in zip(self.blocks, points, strict=True)])
            a = _solve(M, self._value(points) - target)
            points = [b.moved(p, self._spread(b, a)) for b, p in zip(self.blocks, points, strict=True)]
        for block, point in zip(self.blocks, points, strict=True):
            block.write(point)
        return [block.here() for block in self.blocks]

    def _leak(self, value: Tensor, reference: Tensor, at: list[Point], start: list[tuple[Tensor, Tensor]]) -> Tensor:
        """`‖φ − reference‖ / ‖θ − θ_start‖`; one-sided, only what went below the anchor is a leak."""
        off = value - reference
        if self.options.mode == "one_sided":
            off = (value - self.anchor).clamp_max(0)
        moved2 = off.new_zeros(())
        for block, (A0, B0), point in zip(self.blocks, start, at, strict=True):
            moved2 = moved2 + block.distance2(A0, B0, point).to(self.home)
        return _ratio(off.norm(), moved2.sqrt())

    def _value(self, points: list[Point]) -> Tensor:
        return self._sum([block.value(point) for block, point in zip(self.blocks, points, strict=True)])

    def _sum(self, per_pair: list[Tensor]) -> Tensor:
        """Totals over the pairs that share a constraint: `[n, ...]` of every block to `[owners, ...]`."""
        total = torch.zeros(self.owners, *per_pair[0].shape[1:], dtype=self.wide, device=self.home)
        for block, values in zip(self.blocks, per_pair, strict=True):
            total = total.index_add(0, block.owner.to(self.home), values.to(self.home))
        return total

    def _spread(self, block: Block, a: Tensor) -> Tensor:
        """Each pair's own coefficients: `[owners, k] → [n, k]`."""
        return a.to(block.device)[block.owner]


def _block_class(options: Options, group: Sequence[LoraFactors]) -> type[DeltaWeightBlock] | type[ParameterBlock]:
    if options.space == "parameter":
        return ParameterBlock
    return WholeWeightBlock if is_whole_weight(group[0]) else DeltaWeightBlock


def _solve(M: Tensor, right: Tensor) -> Tensor:
    """`a = M⁺·right` for every owner; where no factor is live there is nothing to move, and `a = 0`."""
    if M.shape[-1] == 1:
        diagonal = M[..., 0]
        return torch.where(diagonal == 0, torch.zeros_like(right), right / diagonal)
    eigenvalues, V = torch.linalg.eigh(M)
    kept = eigenvalues > 1e-12 * eigenvalues[..., -1:].clamp_min(1e-300)
    inverse = torch.where(kept, 1 / eigenvalues, torch.zeros_like(eigenvalues))
    solved: Tensor = (V @ (inverse.unsqueeze(-1) * (V.mT @ right.unsqueeze(-1)))).squeeze(-1)
    return solved


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, and 0 where both are 0 (nothing moved, so nothing leaked)."""
    return torch.where((part == 0) & (whole == 0), torch.zeros_like(part), part / whole)


def _orthonormalising(directions: ParameterDirections, options: Options, owner: Sequence[int], owners: int) -> Tensor:
    """`mix [owners, k, k]`, float64: `Σ_j mix_ij U_j` are orthonormal within each owner; dependent ones
    become zero rows.
    """
    gram = torch.zeros(owners, directions.k, directions.k, dtype=torch.float64)
    for row, weight in zip(owner, directions.weights, strict=True):
        if options.space == "delta_weight":
            gram[row] += directions.factors[weight].gram(directions.coefficients(weight))
        else:
            uA, uB = raw_direction(directions, weight)
            gram[row] += uA.flatten(1) @ uA.flatten(1).T + uB.flatten(1) @ uB.flatten(1).T
    if directions.k == 1:
        return torch.where(gram > 0, gram.clamp_min(1e-300).rsqrt(), torch.zeros_like(gram))
    eigenvalues, V = torch.linalg.eigh(gram)
    kept = eigenvalues > 1e-10 * eigenvalues[:, -1:]
    root = torch.where(kept, eigenvalues.clamp_min(1e-300).rsqrt(), torch.zeros_like(eigenvalues))
    mix: Tensor = root.unsqueeze(-1) * V.mT
    return mix
