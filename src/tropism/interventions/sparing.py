"""Passes in training mode that are no training: what the model generates meanwhile, and its reference.

GRPO samples rollouts, and DPO computes the reference, with the very model that trains and in training mode. A guard on
activations acts in those passes too, unless it is told to spare them.
"""

from collections.abc import Collection
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tropism import hooks
from tropism.errors import AttachError


class Sparing:
    """Whether the pass that is running is one to leave alone."""

    def __init__(self, model: nn.Module, spare: Collection[str]) -> None:
        self._model, self._spare = model, spare
        self._generating = self._reference = False
        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        # What is live when the guard is attached is what trains; a pass in which none of it is live is the reference's.
        self._trained = {adapter for layer in self._layers for adapter in layer.active_adapters}

    @property
    def now(self) -> bool:
        """Whether guards on activations do not act now."""
        return self._generating or self._reference

    def handles(self) -> list[hooks.Handle]:
        """Start to look out for the passes to spare; raises `AttachError` where they could not be told from others."""
        handles: list[hooks.Handle] = []
        if "rollouts" in self._spare:
            handles += hooks.around_generation(self._model, self._begin_generation, self._end_generation)
            if not handles:
                raise AttachError(f"spare: {type(self._model).__name__} has no generate(), so it samples no rollouts")
        if "reference" in self._spare:
            if not self._layers:
                raise AttachError(
                    "spare: the reference is told by its adapters, which are switched off, and this model has none; "
                    "a reference model of its own is guarded only where a guard is attached to it"
                )
            handles += hooks.around_pass(self._model, self._begin_pass, self._end_pass)
        return handles

    def _begin_generation(self) -> None:
        self._generating = True

    def _end_generation(self) -> None:
        self._generating = False

    def _begin_pass(self, *_: Any) -> None:
        self._reference = not any(
            self._trained.intersection(layer.active_adapters) and not layer.disable_adapters for layer in self._layers
        )

    def _end_pass(self, *_: Any) -> None:
        # Before the backward pass: what checkpointing recomputes there belongs to a pass that was not spared.
        self._reference = False
