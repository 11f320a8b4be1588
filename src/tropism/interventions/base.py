"""What every guard is: a frozen object that attaches to a model, edits what it computes or learns, and lets go.

`guard.attach(model)` is a context manager. Inside it the guard's hooks are in place; afterwards, also after an
exception, they are gone. An `Attachment` counts how often each of its sites fired, and raises `GuardNotInForce` where
one did not: a hook that never fired is the commonest failure of hand-written guards, and it is silent.
"""

import abc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tropism import hooks
from tropism.errors import AttachError, GuardNotInForce
from tropism.interventions import state, support
from tropism.site import base_model, uncompiled

Place = Literal["data", "activations", "loss", "activation gradients", "parameter gradients", "update", "weights"]
"""The places of one training step at which a guard can act, in the order in which data passes them."""

By = Literal["forward", "backward", "exit"]
"""When an edit must have happened: in every forward pass it is due in, in every backward pass, or once by the end."""

_ATTACHED: WeakKeyDictionary[nn.Module, list["Attachment"]] = WeakKeyDictionary()

FORWARD_SILENT = (
    "{guard} is not in force: {what} did not fire in forward pass {passes}; likely causes are fused kernels or a "
    "torch.compile from before the guard was attached, which bypass the block, a block that this model skips, or hooks "
    "removed by somebody else; attach the guard first, or choose a site that runs"
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
NEVER_RAN = (
    "{guard} is not in force: an optimizer stepped while it was attached and the model that it is attached to never "
    "ran; attach it to the model that is trained (trainer.model), not to a copy"
)
BACKWARD_TOO_LATE = (
    "{guard} was detached between a forward pass and its backward pass; under gradient checkpointing the blocks are "
    "then recomputed unguarded and the gradients are wrong: keep it attached until after backward()"
)


class Intervention(abc.ABC):
    """A reversible edit of what a model computes or learns; attached to a model, never baked in.

    Subclasses are frozen dataclasses whose fields are the guard's options, and implement `install`.
    """

    place: ClassVar[Place]
    batch_keys: ClassVar[frozenset[str]] = frozenset()
    """Columns of the batch, beyond what the model takes, that the guard needs and removes from the model's inputs."""

    def attach(self, model: nn.Module, *, optimizer: torch.optim.Optimizer | None = None) -> "Attachment":
        """A context manager inside which this guard is in force on `model`."""
        return Attachment(self, uncompiled(model), optimizer)

    @abc.abstractmethod
    def install(self, attachment: "Attachment") -> None:
        """Place the hooks on `attachment.model`; hand each to `attachment.own`, name each expectation by `expect`."""

    def parts(self) -> tuple["Intervention", ...]:
        """The single guards this is made of."""
        return (self,)

    @property
    def at_evaluation(self) -> str:
        """Whether the guard acts at evaluation, in words, for a report."""
        return "acts in training only"

    def __or__(self, other: "Intervention") -> "Composition":
        """Both guards; at a shared site the left one edits first."""
        return Composition((*self.parts(), *other.parts()))


@dataclass(frozen=True)
class Composition(Intervention):
    """Several guards in order: at a shared site `a | b` edits the activation with `a` first, then with `b`.

    A guard on gradients guards the activation as the guards to its left have left it: in `a | b`, `b`'s gradient passes
    back through `b` and then through `a`.
    """

    members: tuple[Intervention, ...]

    @property
    def place(self) -> Place:  # type: ignore[override]
        return self.members[0].place

    @property
    def batch_keys(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset().union(*(member.batch_keys for member in self.members))

    @property
    def at_evaluation(self) -> str:
        return "; ".join(f"{type(member).__name__}: {member.at_evaluation}" for member in self.members)

    def install(self, attachment: "Attachment") -> None:
        for member in self.members:
            member.install(attachment)

    def parts(self) -> tuple[Intervention, ...]:
        return self.members


@dataclass(frozen=True)
class _Expectation:
    by: By
    due: Callable[[], bool]


@dataclass(eq=False)
class Attachment:
    """One guard on one model, from `__enter__` to `__exit__`."""

    guard: Intervention
    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    fired: dict[str, int] = field(default_factory=dict)
    """How often each expected edit happened since the guard was attached."""
    passes: int = 0
    """Forward passes of the model since the guard was attached."""
    attached: bool = False
    """Whether the guard is on the model now."""
    kept: list[state.Stateful] = field(default_factory=list, repr=False)
    """Parts with a state that a checkpoint must carry; a guard appends to it while it installs."""
    _expected: dict[str, _Expectation] = field(default_factory=dict, repr=False)
    _owned: ExitStack = field(default_factory=ExitStack, repr=False)
    _meters: list[Callable[[], dict[str, float]]] = field(default_factory=list, repr=False)
    _training: bool = False
    _supported: bool = False
    _recomputed: bool = False
    _before_pass: dict[str, int] = field(default_factory=dict, repr=False)
    _before_backward: dict[str, int] = field(default_factory=dict, repr=False)
    _backward: bool = False
    _steps: int = 0
    _reachable: set[str] = field(default_factory=set, repr=False)

    # --- what a guard calls while it installs and acts ---

    def own(self, handle: Any) -> None:
        """Take a handle with `.remove()`; it is removed on exit, in reverse order."""
        self._owned.callback(handle.remove)

    def expect(self, what: str, by: By = "exit", due: Callable[[], bool] | None = None) -> None:
        """Announce an edit that must happen; the message of `GuardNotInForce` names it.

        `by="forward"`: in every forward pass, where `due()`. `"backward"`: in every training backward pass, and the
        guard calls `reachable` in each forward pass. `"exit"`: at least once if the model ran at all.
        """
        self.fired.setdefault(what, 0)
        self._expected[what] = _Expectation(by, due or (lambda: True))

    def count(self, what: str) -> None:
        """An edit happened. A block that checkpointing recomputes in the backward pass is not counted again."""
        if self._expected[what].by == "forward" and hooks.replaying():
            return
        self.fired[what] += 1

    def reachable(self, what: str) -> None:
        """In this forward pass, a gradient can reach the edit."""
        self._reachable.add(what)

    def meter(self, read: Callable[[], dict[str, float]]) -> None:
        """Register a function that returns (and resets) the guard's readings since it was last read."""
        self._meters.append(read)

    def acts(self, evaluation: bool | None) -> bool:
        """Whether an activation guard with this `evaluation` option acts in the pass that is running.

        Always in training mode. In evaluation mode as the option says; with None, only while training has not begun:
        whoever attaches to a model in evaluation mode asks for guarded passes, a trainer's evaluation does not.
        """
        if self.model.training:
            self._training = True
        return self.model.training or (not self._training if evaluation is None else evaluation)

    # --- what a trainer or a person calls ---

    def begin_training(self) -> None:
        """From now on, passes in evaluation mode are evaluation: guards with `evaluation=None` leave them alone."""
        self._training = True

    def readings(self) -> dict[str, float]:
        """The guard's readings since the last call, for a trainer's log; names are `guard/…`."""
        merged: dict[str, float] = {}
        for read in self._meters:
            merged |= read()
        return merged

    def state_dict(self) -> dict[str, Tensor]:
        """The state that a checkpoint must carry; empty where no guard here has any."""
        return state.gather(self.kept)

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` returned; raises `AttachError` where it is of other guards."""
        state.scatter(self.kept, saved)

    def save(self, folder: str | Path) -> Path | None:
        """Write the state into a checkpoint's folder; None where there is none."""
        return state.save(self.kept, folder)

    def load(self, folder: str | Path) -> None:
        """Go on from what `save` wrote there."""
        state.load(self.kept, folder)

    def verify(self) -> None:
        """Raise `GuardNotInForce` if an expected edit has not happened although the model ran."""
        self._check_backward()
        silent = [what for what, edit in self._expected.items() if edit.by == "exit" and self.fired[what] == 0]
        if silent and self.passes:
            raise GuardNotInForce(
                f"{self._name} is not in force: {', '.join(silent)} never fired in {self.passes} forward "
                f"passes; likely causes are fused kernels that bypass the block, a frozen graph, or hooks removed"
            )
        on_passes = any(edit.by != "exit" for edit in self._expected.values())
        if on_passes and self._steps and not self.passes and not any(self.fired.values()):
            raise GuardNotInForce(NEVER_RAN.format(guard=self._name))

    def __enter__(self) -> "Attachment":
        support.check(self.model, f"{self._name} cannot be attached")
        stack = _ATTACHED.setdefault(base_model(self.model), [])
        parts = [*self.guard.parts(), *(part for other in stack for part in other.guard.parts())]
        for index, part in enumerate(parts):
            if any(part is other for other in parts[:index]):
                raise AttachError(f"this {type(part).__name__} is already attached to this model; attach it once")
        self._reset()
        try:
            for handle in hooks.around_forward(self.model, self._before, self._after):
                self.own(handle)
            self.own(hooks.before_optimizer_step(self._before_step))
            self.guard.install(self)
        except BaseException:
            self._owned.close()
            raise
        stack.append(self)
        self.attached = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        in_order = self.release()
        if error is None:
            if not in_order:
                raise AttachError(f"{self._name} was detached out of order: detach the last attached first")
            self.verify()

    def release(self) -> bool:
        """Take the guard off, verify nothing; False where another guard was attached later and still is."""
        stack = _ATTACHED[base_model(self.model)]
        in_order = stack[-1] is self
        stack.remove(self)
        self.attached = False
        self._owned.close()
        return in_order

    # --- the first-batch check, and every batch's after it ---

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            self._training = True
            if not self._supported:  # again here, because trainers switch checkpointing on after the guard is attached
                support.check(self.model, f"{self._name} cannot guard this training")
                self._recomputed = support.checkpoints(self.model)
                self._supported = True
        self._check_backward()
        self._before_pass = dict(self.fired)
        self._reachable.clear()

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.passes += 1
        silent = [
            what
            for what, edit in self._expected.items()
            if edit.by == "forward" and self.fired[what] == self._before_pass.get(what, 0) and edit.due()
        ]
        if silent:
            raise GuardNotInForce(FORWARD_SILENT.format(guard=self._name, what=", ".join(silent), passes=self.passes))
        if not (module.training and torch.is_grad_enabled()):
            return
        outputs = [tensor for tensor in hooks.tensors_in(output) if tensor.requires_grad]
        backward = [what for what, edit in self._expected.items() if edit.by == "backward"]
        blocked = [what for what in backward if what not in self._reachable]
        if outputs and blocked:
            raise GuardNotInForce(GRADIENT_BLOCKED.format(guard=self._name, what=", ".join(blocked)))
        if backward or self._recomputed:
            for tensor in outputs:
                hooks.edit_gradient(tensor, self._on_backward)

    def _on_backward(self, _gradient: Tensor) -> None:
        if self._recomputed and not self.attached:
            raise GuardNotInForce(BACKWARD_TOO_LATE.format(guard=self._name))
        self._backward = True

    def _before_step(self, *_: Any) -> None:
        self._steps += 1
        self._check_backward()

    def _check_backward(self) -> None:
        if not self._backward:
            return
        self._backward = False
        silent = [
            what
            for what, edit in self._expected.items()
            if edit.by == "backward" and self.fired[what] == self._before_backward.get(what, 0)
        ]
        self._before_backward = dict(self.fired)
        if silent:
            raise GuardNotInForce(GRADIENT_SILENT.format(guard=self._name, what=", ".join(silent)))

    def _reset(self) -> None:
        self.fired.clear()
        self._expected.clear()
        self._meters.clear()
        self.kept.clear()
        self._owned = ExitStack()
        self._before_backward.clear()
        self.passes = self._steps = 0
        self._training = self.model.training
        self._supported = self._recomputed = self._backward = False

    @property
    def _name(self) -> str:
        return " | ".join(type(part).__name__ for part in self.guard.parts())


def attachments(model: nn.Module) -> Iterator[Attachment]:
    """The guards now attached to `model`, first attached first."""
    yield from _ATTACHED.get(base_model(model), ())
