"""What guards on activations share: their options' checks, and the tokens and passes that they act on."""

from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from tropism import hooks
from tropism.activations.positions import RESPONSE_MASK, GuardPositions, read_batches
from tropism.directions.artifact import Directions
from tropism.errors import UsageError
from tropism.interventions.base import Attachment
from tropism.site import Site

TokenWeights = Callable[[Tensor], Tensor | None]
"""From an activation to one number per token."""


def check_options(guard: str, strength: float, positions: str) -> None:
    """Raise `UsageError` for options that no guard takes."""
    if not 0 <= strength <= 1:
        raise UsageError(f"{guard}.strength must lie in [0, 1] (1 removes the whole component), found {strength!r}")
    check_positions(guard, positions)


def check_positions(guard: str, positions: str) -> None:
    """Raise `UsageError` for positions that no guard takes."""
    if positions not in get_args(GuardPositions):
        raise UsageError(f"{guard}.positions must be 'all' or 'response', found {positions!r}")


def keys_for(positions: str) -> frozenset[str]:
    """The batch's columns that a guard at these positions needs."""
    return frozenset() if positions == "all" else frozenset({RESPONSE_MASK})


def at_evaluation(evaluation: bool | None) -> str:
    """Whether an activation guard acts at evaluation, in words."""
    if evaluation is None:
        return "off at evaluation once training has begun"
    return "acts at evaluation too" if evaluation else "off in evaluation mode"


def check_directions(directions: Directions, attachment: Attachment) -> None:
    """Raise `DirectionsMismatch` where they are another model's, `SiteError` for a site that the model lacks."""
    directions.check_model(attachment.model)
    for site in directions.sites:
        hooks.module_at(attachment.model, site)


def token_weights(attachment: Attachment, positions: GuardPositions) -> TokenWeights:
    """For an activation `[B, T, d]`: 1 where the guard acts and 0 elsewhere, `[B, T, 1]`, or None for everywhere."""
    if positions == "all":
        return _everywhere
    reader = read_batches(attachment.model)
    attachment.own(reader)
    return partial(reader.mask, positions)


def _everywhere(_h: Tensor) -> None:
    return None


class Resident:
    """A constant on the device of what it is applied to: copied there once, not in every pass."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._copies: dict[torch.device, Tensor] = {}

    def __call__(self, h: Tensor) -> Tensor:
        if h.device not in self._copies:
            self._copies[h.device] = self._tensor.to(h.device)
        return self._copies[h.device]


def describe(directions: Directions) -> str:
    """Sites and ranks in words; where rows depend on each other, the rank is what the guard removes."""
    said = []
    for site in directions.sites:
        rows, rank = directions.vectors[site].shape[0], directions.basis(site).shape[0]
        said.append(f"{site} (rank {rank}{f' of {rows} rows, which are linearly dependent' if rank < rows else ''})")
    return ", ".join(said)


def label(guard: str, site: Site) -> str:
    """What an edit is called in counts and messages."""
    return f"{guard} at {site}"
