"""`UpdateConstraint`: what is learned stays orthogonal to directions in weight space, under any optimiser."""

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch

from tropism import hooks
from tropism.adapters.factors import LoraFactors
from tropism.directions.parameter import ParameterDirections
from tropism.errors import AttachError, DirectionsError, DirectionsMismatch, UsageError
from tropism.interventions.base import Attachment, Intervention, Place, attachments
from tropism.interventions.update_constraint import step
from tropism.interventions.update_constraint.matching import trainable_pairs
from tropism.interventions.update_constraint.options import Mode, Options, Per, Space, When
from tropism.interventions.update_constraint.whole_weight import is_whole_weight

NO_OPTIMIZER = (
    "UpdateConstraint needs the optimizer that trains the model: guard.attach(model, optimizer=optimizer); "
    "in a Trainer use trainer.add_callback(tp.InterventionCallback(guard)), which passes it when training "
    "begins"
)
DEEPSPEED = (
    "UpdateConstraint cannot hold under DeepSpeed, found {found}: its engine steps inside backward() on "
    "flattened partitions, so nothing can act between the gradients and the step; train with DDP or FSDP2 "
    "instead"
)


@dataclass(frozen=True)
class UpdateConstraint(Intervention):
    """Forbid `φ = ⟨U_W, s·B·A⟩` to change in training, for every adapted weight `W` and direction `U`.

    Of a linear layer that is trained itself (full fine-tuning) it is `φ = ⟨U_W, W⟩`.

    Before each optimiser step the gradients of A and B lose their component along the tangents `s·Bᵀ·U_W` and
    `s·U_W·Aᵀ`; after it, Newton's steps on φ bring the weights back to the anchor `c`, the value of φ when
    the guard was attached. So `‖Uᵀ(θ − θ₀)‖ / ‖θ − θ₀‖` stays at rounding error whatever the optimiser does;
    the ledger records it, and above `tolerance` the run fails with `LeakExceeded`.

    Args:
        directions: from `parameter_directions`; every one must match a trainable LoRA weight.
        space: `delta_weight`, the weight itself, the same in every gauge of A and B; `parameter`, the factors
            A and B as published, for adapters that share an initialisation and a rank.
        when: `update`, before and after the step, exact; `gradient`, before it only, the published rule,
            which leaks through preconditioning, momentum and weight decay (no tolerance applies to it).
        mode: `equality`, no motion along the direction either way; `one_sided`, gradients never pull against
            the direction and φ never falls below its anchor, motion along it is free; `soft`, a share
            `strength` of the gradient's component is removed, and as much of φ's deviation pulled back.
        strength: in [0, 1], for `soft`; 0 is no guard, 1 is `equality`.
        per: `weight`, one constraint for each adapted weight and direction; `model`, one for each direction
            over all weights together (the inner product of the whole update with the whole direction):
            weaker, since weights may trade with one another.
        tolerance: largest cumulative leak.

    Raises on attach: `AttachError` without optimizer, under DeepSpeed, for a direction that matches
    no trainable weight; `DirectionsMismatch` for other shapes, another base model, or other ranks in the
    parameter space.

    Source: constrained refusal fine-tuning projects the gradient before AdamW; the correction after the step,
    the gauge-free space and the ledger are ours.

    >>> guard = UpdateConstraint(parameter_directions("refusal/adapter"))                # doctest: +SKIP
    >>> with guard.attach(model, optimizer=optimizer): train()                           # doctest: +SKIP
    """

    directions: ParameterDirections
    space: Space = "delta_weight"
    when: When = "update"
    mode: Mode = "equality"
    strength: float = 1.0
    per: Per = "weight"
    tolerance: float = 1e-4

    place: ClassVar[Place] = "update"

    def __post_init__(self) -> None:
        for name, allowed in (("space", Space), ("when", When), ("mode", Mode), ("per", Per)):
            value = {"space": self.space, "when": self.when, "mode": self.mode, "per": self.per}[name]
            if value not in get_args(allowed):
                raise UsageError(
                    f"UpdateConstraint.{name} must be one of {', '.join(get_args(allowed))}, found {value!r}"
                )
        if not 0 <= self.strength <= 1 or (self.mode != "soft" and self.strength != 1):
            raise UsageError(
                "UpdateConstraint.strength must be in [0, 1], and 1 unless mode='soft', found "
                f"{self.strength!r} with mode={self.mode!r}"
            )
        if not self.tolerance > 0:
            raise UsageError(f"UpdateConstraint.tolerance must be above 0, found {self.tolerance!r}")
        if self.mode == "one_sided" and self.directions.k > 1:
            raise DirectionsError(
                f"UpdateConstraint(mode='one_sided') needs one direction, found {self.directions.k}: sides "
                "of several that overlap would contradict; use mode='equality', or one guard for each "
                "direction"
            )

    def install(self, attachment: Attachment) -> None:
        optimizer = steppable(attachment.optimizer)
        pairs = trainable_pairs(attachment.model, self.directions, optimizer)
        if self.space == "parameter":
            if any(is_whole_weight(pair) for pair in pairs):
                raise AttachError(
                    "UpdateConstraint(space='parameter') constrains the factors of an adapter, found weights that are trained "
                    "themselves; use space='delta_weight'"
                )
            _check_ranks(self.directions, pairs)
        _refuse_second(attachment)
        attachment.expect("update constraint")
        if not self.directions.rank:  # rank zero forbids nothing: the step stays as it is, bit for bit
            for handle in hooks.around_step(optimizer, after=lambda: attachment.count("update constraint")):
                attachment.own(handle)
            return
        options = Options(self.space, self.when, self.mode, self.strength, self.per, self.tolerance)
        constraint = step.Constraint(options, self.directions, pairs)
        attachment.kept.append(constraint)

        def after() -> None:
            if constraint.after_step():
                attachment.count("update constraint")

        for handle in hooks.around_step(optimizer, constraint.before_step, after):
            attachment.own(handle)
        attachment.meter(constraint.ledger.readings)


def steppable(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's wrapper; raises `AttachError` where no constraint could
    hold.
    """
    from accelerate.optimizer import AcceleratedOptimizer

    if optimizer is None:
        raise AttachError(NO_OPTIMIZER)
    if "deepspeed" in type(optimizer).__module__.lower():
        raise AttachError(DEEPSPEED.format(found=type(optimizer).__name__))
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise AttachError(
            f"UpdateConstraint needs a torch.optim.Optimizer (its step hooks), found {type(optimizer).__name__}"
        )
    return optimizer


def _refuse_second(attachment: Attachment) -> None:
    """Two constraints correct one after the other, so that only the last would hold."""
    live = [*attachments(attachment.model), attachment]
    if any(isinstance(part, step.Constraint) for other in live for part in other.kept):
        raise AttachError(
            "UpdateConstraint: the model is under an update constraint already, and each would undo the "
            "other's correction; put all directions into one guard: parameter_directions([first, second])"
        )


def _check_ranks(directions: ParameterDirections, pairs: list[LoraFactors]) -> None:
    for pair in pairs:
        ranks = {rank for rank in directions.factors[pair.place.weight].ranks if rank}
        if ranks - {pair.A.shape[0]}:
            raise DirectionsMismatch(
                "UpdateConstraint(space='parameter') needs directions of the adapter's own rank, found rank "
                f"{', '.join(map(str, sorted(ranks)))} at {pair.place.weight}, where the adapter has "
                f"{pair.A.shape[0]}; use space='delta_weight', in which ranks may differ"
            )
    doubled = {
        pair.place.weight for pair in pairs if sum(other.place.weight == pair.place.weight for other in pairs) > 1
    }
    if doubled:
        raise AttachError(
            "UpdateConstraint(space='parameter') needs one trainable adapter, found several at "
            f"{min(doubled)}; use space='delta_weight'"
        )
