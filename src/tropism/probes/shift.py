"""Predicted against realised: does the activation go where pressure says, once parameters have to carry it there?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from tropism.data.batches import batches
from tropism.data.chats import Chat, Example
from tropism.data.render import Positions, render
from tropism.directions.artifact import Directions
from tropism.directions.stream import activations
from tropism.errors import UsageError
from tropism.probes.gradients import collect_gradients
from tropism.probes.pressure import pressure
from tropism.probes.response_loss import as_measured, response_losses
from tropism.site import input_device


def predicted_and_realised_shift(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat | Example],
    directions: Directions,
    positions: Positions = "response",
    *,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    template_kwargs: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """For each chat one SGD step on its own loss: its pressure before, and how far its projection then went.

    `predicted = −⟨ḡ, v̂⟩`; `realised = (⟨h̄(θ − η∂L/∂θ), v̂⟩ − ⟨h̄(θ), v̂⟩)/η`. To first order the second is the
    first with `J Jᵀ` in between (J the Jacobian of activations by trainable parameters), so that the two share a sign
    and a trend and no scale. Columns: `chat, site, predicted, realised`. Parameters are put back after every step.

    Raises:
        UsageError: the model has no trainable parameters (add an adapter); several directions at a site.
        DataError: as `collect_gradients` raises it for chats.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise UsageError(
            "predicted_and_realised_shift: the model has no trainable parameters to step; add a LoRA adapter"
        )
    cache = collect_gradients(
        model, tokenizer, chats, directions.sites, positions, batch_size, template_kwargs=template_kwargs
    )
    table = pressure(cache, directions)
    if "direction" in table.columns:
        raise UsageError("predicted_and_realised_shift takes one direction a site, found several")
    table = table.rename(columns={"pressure": "predicted"})[["chat", "site", "predicted"]]
    start = [parameter.detach().clone() for parameter in trainable]
    realised: dict[tuple[str | int, str], float] = {}
    with as_measured(model, frozen=False):
        for name, item in zip(cache.chats, chats, strict=True):
            rendered = [
                render(
                    tokenizer,
                    item.content if isinstance(item, Example) else item,
                    template_kwargs=template_kwargs,
                )
            ]
            before = activations(model, rendered, directions.sites, positions, 1)
            (batch,) = batches(rendered, 1, device=input_device(model))
            with torch.enable_grad():
                loss = response_losses(model, batch)[0]
            gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
            try:
                with torch.no_grad():
                    for parameter, gradient in zip(trainable, gradients, strict=True):
                        if gradient is not None:
                            parameter.sub_(gradient, alpha=learning_rate)
                after = activations(model, rendered, directions.sites, positions, 1)
            finally:
                with torch.no_grad():
                    for parameter, value in zip(trainable, start, strict=True):
                        parameter.copy_(value)
            for site in directions.sites:
                v = directions.vectors[site][0]
                realised[name, str(site)] = float((after[site] - before[site])[0] @ (v / v.norm())) / learning_rate
    table["realised"] = [realised[chat, site] for chat, site in zip(table["chat"], table["site"], strict=True)]
    return table


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """How well pressure predicts: `site, chats, r` (Pearson, NaN where nothing varies), `same_sign` (a share)."""
    rows = []
    for site, part in table.groupby("site", sort=False):
        predicted, realised = part["predicted"].to_numpy(), part["realised"].to_numpy()
        varies = len(part) > 2 and np.ptp(predicted) > 0 and np.ptp(realised) > 0
        r = float(np.corrcoef(predicted, realised)[0, 1]) if varies else float("nan")
        rows.append((site, len(part), r, float(np.mean(np.sign(predicted) == np.sign(realised)))))
    return pd.DataFrame(rows, columns=["site", "chats", "r", "same_sign"])
