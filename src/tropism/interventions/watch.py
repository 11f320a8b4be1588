"""In force or loud: whether a guard did, in every pass, what it promised to do.

A hook that never fires changes nothing and says nothing. So a guard announces its edits, counts them as they happen,
and a `Watch` compares the two at the end of every forward pass and after every backward pass.
"""

import enum
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tropism import hooks
from tropism.errors import AttachError, GuardNotInForce
from tropism.interventions import support

By = Literal["forward", "backward", "exit"]
"""When an edit must have happened: in every forward pass it is due in, in every backward pass, or once by the end."""

FORWARD_SILENT = (
    "{guard} is not in force: {what} did not fire in forward pass {passes}; likely causes are fused kernels or a "
    "torch.compile from before the guard was attached, which bypass it, a part that this model skips or this batch does "
    "not reach (a vision tower), or hooks removed by somebody else; attach the guard first, and keep to what runs"
)
GRADIENT_BLOCKED = (
    "{guard} is not in force: no gradient can reach {what}, because the activation there is on no graph or was never "
    "seen; likely causes are that nothing at or below the site is trainable (drop the site), reentrant gradient "
    "checkpointing over frozen blocks (use use_reentrant=False), or a torch.compile from before the guard was attached"
)
GRADIENT_SILENT = (
    "{guard} is not in force: a backward pass reached the model's output and not {what}; likely causes are reentrant "
    "gradient checkpointing (use use_reentrant=False), a custom backward that bypasses the block, or an activation "
    "detached above the site"
)
NEVER_FIRED = (
    "{guard} is not in force: {what} never fired in {passes} forward passes; likely causes are fused kernels that "
    "bypass the block, a frozen graph, or hooks removed"
)
NEVER_RAN = (
    "{guard} is not in force: an optimizer stepped while it was attached and the model that it is attached to never "
    "ran; attach it to the model that is trained (trainer.model), not to a copy"
)
NOT_YET = (
    "{guard}: an optimizer steps and the model that the guard is attached to has not run yet; if it is the one that is "
    "trained, attach to trainer.model and not to a copy"
)
BACKWARD_TOO_LATE = (
    "{guard} was detached between a forward pass and its backward pass; under gradient checkpointing the blocks are "
    "then recomputed unguarded and the gradients are wrong: keep it attached until after backward()"
)


class Phase(enum.Enum):
    """Where in a training step the model is.

    `IDLE → FORWARD → IDLE` for every forward pass; `IDLE → BACKWARD` when a gradient reaches the output of one. Nothing
    tells when a backward pass has ended, so its edits are checked by whatever comes next: a forward pass, an
    optimiser step, or the end. That check is what leads from BACKWARD back to IDLE.
    """

    IDLE = "idle"
    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True)
class Expectation:
    """When an edit must happen, and whether it must in the pass that is running."""

    by: By
    due: Callable[[], bool]


class Watch:
    """Holds one guard on one model to what it announced; raises `GuardNotInForce` where it did not happen."""

    def __init__(self, guard: str, model: nn.Module) -> None:
        self.guard, self.model = guard, model
        self.phase = Phase.IDLE
        self.passes = self.steps = 0
        self.fired: dict[str, int] = {}
        self.ended = False
        self._expected: dict[str, Expectation] = {}
        # The counts when the running forward pass began, and when the last backward pass was checked.
        self._fired_before_forward: dict[str, int] = {}
        self._fired_before_backward: dict[str, int] = {}
        # The edits that the next backward pass will reach, as the guard found in the running forward pass.
        self._reachable: set[str] = set()
        # Both are known from the first training pass on: trainers switch checkpointing on after a guard is attached.
        self._checked = False
        self._recomputed = False
        # Whether the running forward pass began with gradients on, in training mode.
        self._on_graph = False

    def handles(self) -> list[RemovableHandle]:
        """Start watching: the model's passes, and every optimiser's steps."""
        passes = hooks.around_pass(self.model, self.begin_forward, self.end_forward)
        inside = hooks.inside_first_block(self.model, self.see_inside)
        return [*passes, *inside, hooks.before_optimizer_step(self.before_step)]

    def expect(self, what: str, by: By, due: Callable[[], bool]) -> None:
        """Add an edit that must happen."""
        self.fired.setdefault(what, 0)
        self._expected[what] = Expectation(by, due)

    def count(self, what: str) -> None:
        """Count an edit; a block that checkpointing recomputes in the backward pass is not counted again."""
        if self._expected[what].by == "forward" and hooks.replaying():
            return
        self.fired[what] += 1

    def reachable(self, what: str) -> None:
        """Note that in this forward pass a gradient can reach the edit."""
        self._reachable.add(what)

    def begin_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """`IDLE` or `BACKWARD` → `FORWARD`."""
        if module.training and not self._checked:
            support.check(self.model, f"{self.guard} cannot guard this training")
            self._recomputed = support.checkpoints(self.model)
            self._checked = True
        self._settle_backward()
        self.phase = Phase.FORWARD
        self._on_graph = module.training and torch.is_grad_enabled()
        self._fired_before_forward = dict(self.fired)
        self._reachable.clear()

    def see_inside(self) -> None:
        """Raise where a block runs without a graph although the pass has one: reentrant checkpointing, however hidden."""
        if self.phase is Phase.FORWARD and self._on_graph and not torch.is_grad_enabled():
            raise AttachError(support.REENTRANT.format(what=f"{self.guard} cannot guard this training"))

    def end_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """`FORWARD` → `IDLE`: check the edits of this pass, and wait for its backward pass."""
        self.phase = Phase.IDLE
        self.passes += 1
        due = [what for what, edit in self._expected.items() if edit.by == "forward" and edit.due()]
        self._raise(FORWARD_SILENT, self._silent(due, self._fired_before_forward))
        if not (module.training and torch.is_grad_enabled()):
            return
        outputs = [tensor for tensor in hooks.tensors_in(output) if tensor.requires_grad]
        backward = self._expected_by("backward")
        if outputs:
            self._raise(GRADIENT_BLOCKED, [what for what in backward if what not in self._reachable])
        if backward or self._recomputed:
            for tensor in outputs:
                hooks.edit_gradient(tensor, self.begin_backward)

    def begin_backward(self, _gradient: Tensor) -> None:
        """`IDLE` → `BACKWARD`, when a gradient reaches the model's output."""
        if self._recomputed and self.ended:
            raise GuardNotInForce(BACKWARD_TOO_LATE.format(guard=self.guard))
        self.phase = Phase.BACKWARD

    def before_step(self, _optimizer: torch.optim.Optimizer) -> None:
        """An optimiser is about to step: what the backward pass should have edited must be edited by now."""
        self.steps += 1
        self._settle_backward()
        if self.steps == 1 and self._bypassed():
            # Only said: another model may be trained first, and the guarded one later.
            warnings.warn(NOT_YET.format(guard=self.guard), stacklevel=2)

    def verify(self) -> None:
        """Raise `GuardNotInForce` if an announced edit has not happened although the model ran."""
        self._settle_backward()
        if self.passes:
            self._raise(NEVER_FIRED, [what for what in self._expected_by("exit") if self.fired[what] == 0])
        if self._bypassed():
            raise GuardNotInForce(NEVER_RAN.format(guard=self.guard))

    def _bypassed(self) -> bool:
        """Whether an optimiser steps and the model has never run, as where a copy of it is trained."""
        on_passes = any(edit.by != "exit" for edit in self._expected.values())
        return on_passes and self.steps > 0 and not self.passes and not any(self.fired.values())

    def _settle_backward(self) -> None:
        if self.phase is not Phase.BACKWARD:
            return
        self.phase = Phase.IDLE
        silent = self._silent(self._expected_by("backward"), self._fired_before_backward)
        self._fired_before_backward = dict(self.fired)
        self._raise(GRADIENT_SILENT, silent)

    def _expected_by(self, by: By) -> list[str]:
        return [what for what, edit in self._expected.items() if edit.by == by]

    def _silent(self, expected: list[str], before: dict[str, int]) -> list[str]:
        return [what for what in expected if self.fired[what] == before.get(what, 0)]

    def _raise(self, message: str, silent: list[str]) -> None:
        if silent:
            what = ", ".join(silent[:6]) + (f" and {len(silent) - 6} more" if len(silent) > 6 else "")
            raise GuardNotInForce(message.format(guard=self.guard, what=what, passes=self.passes))
