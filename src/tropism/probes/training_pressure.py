"""Pressure while a model trains: the same held-out chats measured again every N optimiser steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import nn

from tropism.data.chats import Chat, Example
from tropism.data.render import Positions
from tropism.directions.artifact import Directions
from tropism.errors import DataError, UsageError
from tropism.probes.gradients import collect_gradients
from tropism.probes.pressure import pressure

METRICS = ["pressure", "cosine", "gradient_norm", "loss"]


class PressureLog:
    """Measures pressure on `chats` every `every` steps; a trainer's callback calls `after_step`.

    The chats stay the same, so that what changes from row to row is the model and not the batch. Guards that act in
    training only are off while it measures. Each measurement costs one forward and backward pass over the chats.

    Raises:
        UsageError: `every` is under 1; several directions at a site. DataError: there are no chats.

    Example:
        log = PressureLog(tokenizer, held_out[:16], directions, every=20)
        log.measure(model, step=0)
        for step, batch in enumerate(loader, start=1):
            ...
            readings = log.after_step(model, step)  # {"pressure/resid_post.12": ..., ...} or None
    """

    def __init__(
        self,
        tokenizer: Any,
        chats: Sequence[Chat | Example],
        directions: Directions,
        *,
        every: int = 20,
        positions: Positions = "response",
        batch_size: int = 8,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if every < 1:
            raise UsageError(f"PressureLog.every must be at least 1, found {every}")
        if not chats:
            raise DataError("PressureLog.chats must hold at least one chat, found none")
        if any(rows.shape[0] > 1 for rows in directions.vectors.values()):
            raise UsageError("PressureLog takes one direction a site, found several")
        self.every = every
        self._measured = (tokenizer, tuple(chats), directions, positions, batch_size, template_kwargs)
        self._tables: list[pd.DataFrame] = []

    def after_step(self, model: nn.Module, step: int) -> dict[str, float] | None:
        """The readings if `step` is a multiple of `every`, else None."""
        return self.measure(model, step) if step % self.every == 0 else None

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Measure now; returns `METRIC/SITE` → mean over chats, of pressure, cosine, gradient norm and loss."""
        tokenizer, chats, directions, positions, batch_size, template_kwargs = self._measured
        cache = collect_gradients(
            model, tokenizer, chats, directions.sites, positions, batch_size, template_kwargs=template_kwargs
        )
        means = pressure(cache, directions).groupby("site", sort=False)[METRICS].mean().reset_index()
        means.insert(0, "step", step)
        self._tables.append(means)
        return {f"{metric}/{row['site']}": float(row[metric]) for _, row in means.iterrows() for metric in METRICS}

    @property
    def table(self) -> pd.DataFrame:
        """All measurements: `step, site, pressure, cosine, gradient_norm, loss`."""
        columns = ["step", "site", *METRICS]
        return pd.concat(self._tables, ignore_index=True) if self._tables else pd.DataFrame(columns=columns)
