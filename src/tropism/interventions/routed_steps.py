"""Routing over a training step: whose batch is in the model, and which adapters the optimiser may move."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tropism import hooks
from tropism.errors import DataError
from tropism.interventions.routes import RoutedBatch, read_route, read_weights

MISSING = (
    "GradientRouting is attached, so a batch must carry the column route (or route_weights), found neither; keep the "
    "column in the collator (in another library's trainer with tropism.keep_columns(trainer)), and evaluate under "
    "torch.no_grad()"
)


class RoutedSteps:
    """What one attachment knows: the batch now in the model, and which adapters the coming step may update."""

    def __init__(
        self,
        retain: str,
        forget: str,
        forget_live_on_retain: bool,
        signed: bool,
        parameters: Mapping[str, list[nn.Parameter]],
    ) -> None:
        self.batch: RoutedBatch | None = None
        """The batch of the pass that runs, or whose backward pass runs; None where the pass carries no routes."""
        self._names = (retain, forget)
        self._forget_live_on_retain, self._signed = forget_live_on_retain, signed
        self._parameters = parameters
        # Batches whose backward pass ran since the last optimiser step: what the step is made of.
        self._window: list[RoutedBatch] = []
        self._stepped = False
        # Readings since they were last read.
        self._rows: dict[str, float] = {}
        self._skipped: dict[str, int] = {}

    def take(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the routing column out of the batch that the model is called with."""
        kwargs = dict(kwargs)
        route, weights = kwargs.pop("route", None), kwargs.pop("route_weights", None)
        if route is not None and weights is not None:
            raise DataError("a batch must carry route or route_weights, found both; drop one column")
        if weights is not None:
            self.batch = read_weights(weights, _shape(args, kwargs), self._names, self._signed, self._reached)
        elif route is not None:
            silence = not self._forget_live_on_retain
            self.batch = read_route(route, _shape(args, kwargs), self._names, silence, self._reached)
        elif torch.is_grad_enabled():
            raise DataError(MISSING)
        else:
            self.batch = None
        if self.batch is not None and torch.is_grad_enabled():
            self._tally(self.batch)
        return args, kwargs

    def _tally(self, batch: RoutedBatch) -> None:
        for key, value in batch.tally.items():
            self._rows[key] = self._rows.get(key, 0) + value
        # Nothing is accumulated yet. So it is also after a step that a GradScaler skipped, of which no hook tells.
        if all(p.grad is None for parameters in self._parameters.values() for p in parameters):
            self._window.clear()

    def mark(self, h: Tensor) -> None:
        """Make this pass's batch the current one again when its backward pass comes through this block.

        Checkpointing recomputes a block in the backward pass, when a later forward pass (a reference model's, a second
        micro-batch's) may have put another batch, or none, in place.
        """
        if self.batch is not None and h.requires_grad:
            hooks.edit_gradient(h, partial(self._put_back, self.batch))

    def _put_back(self, batch: RoutedBatch, _gradient: Tensor) -> None:
        self.batch = batch

    def _reached(self, batch: RoutedBatch) -> None:
        """A backward pass came through the batch: it is part of the coming step."""
        if self._stepped:
            self._window.clear()
            self._stepped = False
        self._window.append(batch)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradient from an adapter that no row of this step may update.

        A zero gradient would not do: momentum and weight decay move a parameter whose gradient is zero, and leave one
        alone that has none.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        owned = {name: [p for p in parameters if id(p) in held] for name, parameters in self._parameters.items()}
        if not any(owned.values()):
            return
        # Not cleared here but by the next backward pass: each adapter may have an optimiser of its own.
        self._stepped = True
        present = {name: any(batch.present[name] for batch in self._window) for name in owned}
        flags = [float(bool(self._window)), *(float(present[name]) for name in owned)]
        device = next(p for parameters in owned.values() for p in parameters).device
        any_batch, *updated = _over_processes(flags, device)
        for (name, parameters), allowed in zip(owned.items(), updated, strict=True):
            if any_batch and not allowed and parameters:
                self._skipped[name] = self._skipped.get(name, 0) + 1
                for p in parameters:
                    p.grad = None

    def read(self) -> dict[str, float]:
        """Return the shares of routes, and the steps without an adapter, since the last call."""
        total = self._rows.get("positions", 0)
        read = {
            f"guard/routing/share_{key}": value / total
            for key, value in self._rows.items()
            if key != "positions" and total
        }
        read |= {f"guard/routing/steps_without_{name}": float(count) for name, count in self._skipped.items()}
        self._rows, self._skipped = {}, {}
        return read


def _shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """`(B, T)` of the pass, from whatever holds its tokens."""
    for tokens in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1]):
        if isinstance(tokens, Tensor):
            return int(tokens.shape[0]), int(tokens.shape[1])
    raise DataError("GradientRouting: a forward pass must have input_ids or inputs_embeds, found neither")


def _over_processes(flags: list[float], device: torch.device) -> list[float]:
    """Return each flag, raised where any data-parallel process raises it: their gradients are averaged into one step."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return flags
    shared = torch.tensor(flags, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return [float(flag) for flag in shared.tolist()]
