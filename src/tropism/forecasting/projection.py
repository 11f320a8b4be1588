"""Tier 1: how far along a trait the data's responses lie, against the model's own answers to the same prompts.

A trait's axis at a site is the mean difference `v` of responses with it and without. A row's projection is

    z = mean over sites of ⟨h − h̄_own, v̂⟩ / c,    c = ⟨h̄_with − h̄_without, v̂⟩ on held-out pairs,

so 0 is where the model's own answers lie and 1 is as far as the trait is from its absence. `h [d]` is the mean over
response tokens; float32 activations, float64 statistics. Sites where held-out pairs are told apart with an AUC under
0.8 are left out; where none is left, the trait cannot be forecast on this model.

Source: projection difference of persona vectors (Chen et al., 2025); the standardisation and both nulls are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tropism.data.chats import Chat
from tropism.data.generation import GenerateOptions, generate
from tropism.data.render import render
from tropism.directions import evidence
from tropism.directions.stream import activations, reading
from tropism.forecasting.trait import Trait
from tropism.site import Site

LEAST_AUC = 0.8
"""A direction that tells held-out pairs apart less well than this forecasts nothing."""
HELD_OUT = 0.375
"""The share of a trait's pairs that its direction is validated on."""

Activations = Mapping[Site, Tensor]


@dataclass(frozen=True, eq=False)
class Axis:
    """A trait's direction at the sites where it holds up on held-out pairs."""

    trait: Trait
    unit: Mapping[Site, np.ndarray]
    """`[d]`, of length 1."""
    length: Mapping[Site, float]
    """How far held-out responses with the trait lie from those without, along the direction."""
    auc: float
    """Of the best site."""
    auc_low: float
    pairs: int
    with_chats: tuple[Chat, ...]
    without_chats: tuple[Chat, ...]

    @property
    def valid(self) -> bool:
        """Whether the direction tells held-out pairs apart at any site."""
        return bool(self.unit)


def contrast_chats(
    model: nn.Module,
    tokenizer: Any,
    trait: Trait,
    *,
    batch_size: int,
    max_new_tokens: int,
    template_kwargs: Mapping[str, Any] | None,
) -> tuple[list[Chat], list[Chat]]:
    """Chats with the trait and without; for two system prompts the model's own answers, read without the prompt.

    A system prompt separates its own two wordings perfectly. What is asked is whether the *answers* differ, so the
    prompt is taken out before they are read.
    """
    contrast = trait.contrast()
    if contrast.has_responses:
        return list(contrast.positive), list(contrast.negative)
    options = GenerateOptions(max_new_tokens=max_new_tokens, batch_size=batch_size)
    sides = []
    for prompts in (contrast.positive, contrast.negative):
        answers = generate(model, tokenizer, list(prompts), options, template_kwargs=template_kwargs)
        chats: list[Chat] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            asked = [message for message in prompt if message["role"] != "system"]
            chats.append((*asked, {"role": "assistant", "content": answer or "…"}))
        sides.append(chats)
    return sides[0], sides[1]


def read(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat],
    sites: Sequence[Site],
    *,
    batch_size: int,
    template_kwargs: Mapping[str, Any] | None,
    where: str = "row",
) -> dict[Site, Tensor]:
    """Each chat's mean activation over its response tokens, `[n, d]` float32 per site."""
    rendered = [
        render(tokenizer, chat, template_kwargs=template_kwargs, where=f"{where} {index}")
        for index, chat in enumerate(chats)
    ]
    with reading(model):
        return activations(model, rendered, list(sites), "response", batch_size)


def find_axis(
    model: nn.Module,
    tokenizer: Any,
    trait: Trait,
    sites: Sequence[Site],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 48,
    seed: int = 0,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Axis:
    """The trait's axis, found on most of its pairs and kept where it tells the held-out ones apart."""
    sides = contrast_chats(
        model, tokenizer, trait, batch_size=batch_size, max_new_tokens=max_new_tokens, template_kwargs=template_kwargs
    )
    options: dict[str, Any] = {"batch_size": batch_size, "template_kwargs": template_kwargs}
    with_, without = (
        read(model, tokenizer, side, sites, where=f"trait {trait.name}, pair", **options) for side in sides
    )
    n = len(sides[0])
    order = np.random.default_rng(seed).permutation(n)
    held = max(4, round(HELD_OUT * n))
    test, fit = order[:held], order[held:]
    unit: dict[Site, np.ndarray] = {}
    length: dict[Site, float] = {}
    best = evidence.auc(np.zeros(2), np.zeros(2))
    for site in sites:
        one, two = with_[site].double().numpy(), without[site].double().numpy()
        v = one[fit].mean(axis=0) - two[fit].mean(axis=0)
        norm = float(np.linalg.norm(v))
        if norm == 0:
            continue
        positive, negative = one[test] @ (v / norm), two[test] @ (v / norm)
        found = evidence.auc(positive, negative)
        if found.low > best.low or not unit:
            best = found
        apart = float(positive.mean() - negative.mean())
        if found.value >= LEAST_AUC and apart > 0:
            unit[site], length[site] = v / norm, apart
    return Axis(trait, unit, length, best.value, best.low, n, tuple(sides[0]), tuple(sides[1]))


def along(axis: Axis, h: Activations, own: Activations) -> np.ndarray:
    """`z [n]` of the rows whose activations are `h`, measured from the mean of the model's own answers."""
    total = np.zeros(len(next(iter(h.values()))))
    for site, unit in axis.unit.items():
        centre = own[site].double().numpy().mean(axis=0)
        total += (h[site].double().numpy() - centre) @ unit / axis.length[site]
    return total / len(axis.unit)


def random_shifts(axis: Axis, h: Activations, own: Activations, *, draws: int, seed: int) -> np.ndarray:
    """`z [draws, n]` along random directions in the axis's place: the null of the dose.

    The null of "any direction in which these texts vary would have moved as far". The directions have length 1 and the
    covariance of data and own answers, pooled about their common mean: the shift between the two is part of what they
    are drawn from, so this null errs on the side of calling nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    total = np.zeros((draws, len(next(iter(h.values())))))
    for site in axis.unit:
        directions = _drawn(torch.cat([h[site], own[site]]), draws, generator)
        shifted = (h[site].double() - own[site].double().mean(dim=0)) @ directions.T / axis.length[site]
        total += shifted.T.numpy()
    return total / len(axis.unit)


def random_spread(axis: Axis, h: Activations, *, varying: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """`z [draws, n]` about each half's median, along random directions of the rows that do not stand out: the null of the tail.

    `varying [n]` says which rows those are: rows that stand out are what is tested, and would bring their own direction
    into the null. Directions from one half of the rows are read on the other half, since a row lies far along any
    combination of rows that it is part of.
    """
    n = len(varying)
    halves = [np.arange(n) % 2 == 0, np.arange(n) % 2 == 1]
    total = np.zeros((draws, n))
    for here, there in (halves, halves[::-1]):
        generator = torch.Generator().manual_seed(seed)
        drawn_from = torch.from_numpy(here & varying if (here & varying).sum() > 1 else here)
        for site in axis.unit:
            directions = _drawn(h[site][drawn_from], draws, generator)
            total[:, there] += (h[site][torch.from_numpy(there)].double() @ directions.T / axis.length[site]).T.numpy()
        total[:, there] -= np.median(total[:, there], axis=1, keepdims=True)
    return total / len(axis.unit)


def _drawn(rows: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Directions `[draws, d]` of length 1 with the covariance of the rows: random combinations of them, centred."""
    centred = rows.double() - rows.double().mean(dim=0)
    weights = torch.randn((draws, len(centred)), generator=generator, dtype=torch.float64)
    directions = weights @ centred
    unit: Tensor = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return unit
