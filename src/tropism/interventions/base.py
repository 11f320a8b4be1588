"""What every guard is: a frozen object that attaches to a model, edits what it computes or learns, and lets go.

`guard.attach(model)` is a context manager. Inside it the guard's hooks are in place; afterwards, also after an
exception, they are gone. An `Attachment` counts how often each of its sites fired, and raises `GuardNotInForce` where
one did not: a hook that never fired is the commonest failure of hand-written guards, and it is silent.
"""

import abc
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from tropism import hooks, notebook
from tropism.activations.attached import Attached, attached
from tropism.errors import AttachError, UsageError
from tropism.interventions import state, support
from tropism.interventions.sparing import Sparing
from tropism.interventions.watch import By, Watch
from tropism.site import uncompiled

Place = Literal["data", "activations", "loss", "activation gradients", "parameter gradients", "update", "weights"]
"""The places of one training step at which a guard can act, in the order in which data passes them."""

Spared = Literal["rollouts", "reference"]
"""Passes in training mode that guards on activations can be told to leave alone."""


class Intervention(abc.ABC):
    """A reversible edit of what a model computes or learns; attached to a model, never baked in.

    Subclasses are frozen dataclasses whose fields are the guard's options, and implement `install`.
    """

    place: ClassVar[Place]
    batch_keys: ClassVar[frozenset[str]] = frozenset()
    """Columns of the batch, beyond what the model takes, that the guard needs and removes from the model's inputs."""

    def attach(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        spare: Collection[Spared] = (),
        leader: "Attachment | None" = None,
    ) -> "Attachment":
        """Return a context manager inside which this guard is in force on `model`.

        Args:
            optimizer: the one that trains the model; the update constraint needs it.
            spare: passes in training mode in which guards on activations do not act: `"rollouts"`, what the model
                generates while it trains (GRPO), and `"reference"`, passes without the trained adapters (DPO).
            leader: the attachment on another model; guards on activations act here when they act there, as on a
                reference model that must be guarded as the trained one is.
        """
        return Attachment(self, uncompiled(model), optimizer, spare, leader)

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

    def _repr_html_(self) -> str:
        rows = [
            (type(part).__name__, part.place, ", ".join(f"{k}={v}" for k, v in notebook.options_of(part).items()))
            for part in self.parts()
        ]
        note = self.at_evaluation
        return notebook.table(
            "Guard" if len(rows) == 1 else "Guards, in order", ("guard", "acts on", "options"), rows, note
        )

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


class Attachment(Attached):
    """One guard on one model, from `__enter__` to `__exit__`: its hooks, its state, its readings.

    Whether it does what it promised is the business of its `Watch`.
    """

    def __init__(
        self,
        guard: Intervention,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        spare: Collection[Spared] = (),
        leader: "Attachment | None" = None,
    ) -> None:
        unknown = sorted(set(spare) - set(get_args(Spared)))
        if unknown:
            raise UsageError(f"attach: spare may hold {', '.join(get_args(Spared))}, found {unknown[0]!r}")
        self.guard, self.model, self.optimizer = guard, model, optimizer
        self.attached = False
        """Whether the guard is on the model now."""
        self.kept: list[state.Stateful] = []
        """Parts with a state that a checkpoint must carry; a guard appends to it while it installs."""
        self._spare, self._leader = frozenset(spare), leader
        self._begin()

    def _begin(self) -> None:
        """Forget an attachment before this one: the same object may be entered again."""
        self.watch = Watch(self.name, self.model)
        self.kept.clear()
        self._owned = ExitStack()
        self._meters: list[Callable[[], dict[str, float]]] = []
        self._terms: list[Callable[[], Tensor | None]] = []
        # From the first pass in training mode on, a pass in evaluation mode is a trainer's evaluation.
        self._training_began = self.model.training
        self._sparing = Sparing(self.model, self._spare)

    @property
    def name(self) -> str:
        """The guard's name; of a composition, its members' names."""
        return " | ".join(type(part).__name__ for part in self.guard.parts())

    @property
    def fired(self) -> dict[str, int]:
        """How often each expected edit happened since the guard was attached."""
        return self.watch.fired

    @property
    def passes(self) -> int:
        """Forward passes of the model since the guard was attached."""
        return self.watch.passes

    # --- what a guard calls while it installs and acts ---

    def own(self, handle: hooks.Handle) -> None:
        """Take a handle; it is removed on exit, in reverse order."""
        self._owned.callback(handle.remove)

    def expect(self, what: str, by: By = "exit", due: Callable[[], bool] | None = None) -> None:
        """Announce an edit that must happen; the message of `GuardNotInForce` names it.

        `by="forward"`: in every forward pass, where `due()`. `"backward"`: in every training backward pass, and the
        guard calls `reachable` in each forward pass. `"exit"`: at least once if the model ran at all.
        """
        self.watch.expect(what, by, due or _always)

    def count(self, what: str) -> None:
        """An edit happened. A block that checkpointing recomputes in the backward pass is not counted again."""
        self.watch.count(what)

    def reachable(self, what: str) -> None:
        """In this forward pass, a gradient can reach the edit."""
        self.watch.reachable(what)

    def meter(self, read: Callable[[], dict[str, float]]) -> None:
        """Register a function that returns (and resets) the guard's readings since it was last read."""
        self._meters.append(read)

    def add_to_loss(self, take: Callable[[], Tensor | None]) -> None:
        """Register a function that hands over what the last pass adds to a loss taken outside of the model: a sum, once."""
        self._terms.append(take)

    def acts(self, evaluation: bool | None) -> bool:
        """Whether an activation guard with this `evaluation` option acts in the pass that is running.

        Always in training mode, but for the passes that it spares. In evaluation mode as the option says; with None,
        only while training has not begun: whoever attaches to a model in evaluation mode asks for guarded passes, a
        trainer's evaluation does not.
        """
        if self._leader is not None:
            return self._leader.acts(evaluation)
        if self.model.training:
            self._training_began = True
            return not self._sparing.now
        return not self._training_began if evaluation is None else evaluation

    # --- what a trainer or a person calls ---

    def begin_training(self) -> None:
        """From now on, passes in evaluation mode are evaluation: guards with `evaluation=None` leave them alone."""
        self._training_began = True

    def readings(self) -> dict[str, float]:
        """The guard's readings since the last call, for a trainer's log; names are `guard/…`."""
        merged: dict[str, float] = {}
        for read in self._meters:
            merged |= read()
        return merged

    def added_loss(self) -> Tensor | None:
        """What the last pass adds to the loss, summed over tokens; None where it adds nothing."""
        added = [term for term in (take() for take in self._terms) if term is not None]
        return None if not added else sum(added[1:], added[0])

    def watch_loss(self, loss: Tensor) -> None:
        """Take the gradient of a loss for the beginning of a backward pass, where it does not pass through the model's output."""
        if loss.requires_grad:
            hooks.edit_gradient(loss, self.watch.begin_backward)

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
        self.watch.verify()

    def __enter__(self) -> "Attachment":
        support.check(self.model, f"{self.name} cannot be attached")
        self._refuse_twice()
        self._begin()
        try:
            for handle in (*self.watch.handles(), *self._sparing.handles()):
                self.own(handle)
            self.guard.install(self)
        except BaseException:
            self._owned.close()
            raise
        attached(self.model).append(self)
        self.attached = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        in_order = self.release()
        if error is None:
            if not in_order:
                raise AttachError(f"{self.name} was detached out of order: detach the last attached first")
            self.verify()

    def release(self) -> bool:
        """Take the guard off, verify nothing; False where another guard was attached later and still is."""
        stack = attached(self.model)
        in_order = stack[-1] is self
        stack.remove(self)
        self.attached = False
        self.watch.ended = True
        self._owned.close()
        return in_order

    def _refuse_twice(self) -> None:
        """Raise `AttachError` where a guard is on the model already, or twice in one composition."""
        others = [part for other in attachments(self.model) for part in other.guard.parts()]
        parts = [*self.guard.parts(), *others]
        for index, part in enumerate(parts):
            if any(part is other for other in parts[:index]):
                raise AttachError(f"this {type(part).__name__} is already attached to this model; attach it once")


def _always() -> bool:
    return True


def attachments(model: nn.Module) -> Iterator[Attachment]:
    """Return the guards now attached to `model`, first attached first."""
    for one in attached(model):
        if isinstance(one, Attachment):
            yield one
