"""`validate_directions`: run held-out chats through the model and say what speaks for a direction and what against."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tropism.activations.mode import adapters_off
from tropism.data.chats import Chat
from tropism.data.render import Positions, render
from tropism.directions import evidence
from tropism.directions.artifact import Directions
from tropism.directions.contrasts import Contrast
from tropism.directions.find import contrast_models, pooled_sides, with_answers
from tropism.directions.stream import activations, reading
from tropism.directions.validity import (
    BehaviourEvidence,
    Doubt,
    SiteValidity,
    ValidityReport,
    doubts,
    handful,
)
from tropism.errors import DataError
from tropism.linalg import principal_angles
from tropism.site import Site


@dataclass(frozen=True)
class Behaviour:
    """Chats that end in a generated response, each with the score of its behaviour (share of capitals, say)."""

    name: str
    chats: Sequence[Chat] = field(repr=False)
    scores: Sequence[float] = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.chats) != len(self.scores) or not self.chats:
            raise DataError(
                f"Behaviour needs one score a chat and at least one chat, found {len(self.chats)} chats and "
                f"{len(self.scores)} scores (leave unscored ones out of both)"
            )


def validate_directions(
    directions: Directions,
    model: nn.Module,
    tokenizer: Any,
    held_out: Contrast,
    *,
    name: str = "directions",
    behaviour: Behaviour | None = None,
    others: Mapping[str, Directions] | None = None,
    positions: Positions | None = None,
    batch_size: int = 16,
    template_kwargs: Mapping[str, Any] | None = None,
    max_new_tokens: int = 64,
    shuffles: int = 500,
    seed: int = 0,
    force: bool = False,
) -> ValidityReport:
    """The evidence for directions on chats they were not found on.

    Args:
        held_out: as `contrast.split()` gives it. For system prompts the answers are read *without* the prompt that
            asked for them: a prompt separates its own two wordings perfectly, and that is no evidence of behaviour.
        behaviour: the model's own generations with scores, for the correlation of projection and behaviour.
        others: directions of other finders or contrasts, for principal angles at shared sites.
        positions: as the directions were found, unless given.
        shuffles: how many shuffled labellings make the null.
        force: validate directions that were found on a model of another config hash.

    Raises:
        DirectionsMismatch: the directions belong to another model.
        DataError: as `find_directions`; and where several directions at a site have one held-out chat a side.
    """
    directions.check_model(model, force=force)
    _check_enough(directions, held_out)
    where = _positions(directions, positions)
    options: dict[str, Any] = {
        "positions": where,
        "batch_size": batch_size,
        "template_kwargs": template_kwargs,
        "max_new_tokens": max_new_tokens,
    }
    told: dict[Site, tuple[Tensor, Tensor]] | None = None
    if held_out.kind == "system_prompts" and where != "last_prompt":
        with reading(*contrast_models(model, held_out)):
            held_out, _ = with_answers(model, tokenizer, held_out, where, template_kwargs, max_new_tokens, batch_size)
        told = pooled_sides(model, tokenizer, held_out, directions.sites, **options)
        with reading(model):
            read = [
                _read_chats(
                    model, tokenizer, _without_system(side), directions.sites, where, batch_size, template_kwargs
                )
                for side in (held_out.positive, held_out.negative)
            ]
        sides = {site: (read[0][site], read[1][site]) for site in directions.sites}
    else:
        sides = pooled_sides(model, tokenizer, held_out, directions.sites, **options)
    spoken: dict[Site, Tensor] | None = None
    if behaviour is not None:
        # Read by the model the directions are of: in a contrast of models by one PEFT model, without its adapters.
        one_model = held_out.kind == "models" and held_out.base is None
        with reading(model), adapters_off(model) if one_model else nullcontext():
            spoken = _read_chats(
                model, tokenizer, behaviour.chats, directions.sites, where, batch_size, template_kwargs
            )
    sites = [
        _site(
            directions,
            site,
            sides[site],
            held_out.paired,
            None if told is None else told[site],
            None if behaviour is None or spoken is None else (behaviour, spoken[site]),
            others or {},
            shuffles,
            seed,
        )
        for site in directions.sites
    ]
    warnings = _general_warnings(directions, held_out, where, behaviour)
    for one in sites:
        warnings.extend(doubts(one, rests_on_behaviour=held_out.kind == "system_prompts"))
    return ValidityReport(
        name=name,
        found_by={key: directions.provenance.get(key) for key in ("finder", "contrast", "positions", "model")},
        held_out={
            "kind": held_out.kind,
            "positive": len(held_out.positive),
            "negative": len(held_out.negative),
            "data_hash": held_out.data_hash(),
            "positions": where,
        },
        sites=tuple(sites),
        similarity=_similarity(directions),
        warnings=tuple(warnings),
    )


def _check_enough(directions: Directions, held_out: Contrast) -> None:
    """In a subspace one half of the chats chooses the axis that the other is scored along."""
    few = min(len(held_out.positive), len(held_out.negative))
    k = max(len(rows) for rows in directions.vectors.values())
    if k > 1 and few < 2:
        raise DataError(
            f"validating {k} directions at a site needs at least 2 held-out chats a side, found {few}; give the contrast "
            "more chats, or hold out a larger share"
        )


def _site(
    directions: Directions,
    site: Site,
    sides: tuple[Tensor, Tensor],
    paired: bool,
    told: tuple[Tensor, Tensor] | None,
    behaviour: tuple[Behaviour, Tensor] | None,
    others: Mapping[str, Directions],
    shuffles: int,
    seed: int,
) -> SiteValidity:
    basis = directions.basis(site)
    positive, negative = (_coordinates(side, basis) for side in sides)
    along = evidence.scores_along(positive, negative)
    found = evidence.auc(*along)
    as_told = (
        None if told is None else evidence.auc(*evidence.scores_along(*(_coordinates(s, basis) for s in told))).value
    )
    separation, null = evidence.shuffled_norms(positive, negative, paired, shuffles, seed)
    share, largest = evidence.norm_in_largest(directions.vectors[site][0].double().numpy(), handful(directions.width))
    seen = None
    if behaviour is not None:
        what, rows = behaviour
        spoken = _coordinates(rows, basis)
        axis = np.ones(1) if basis.shape[0] == 1 else positive.mean(0) - negative.mean(0)
        projections = spoken @ (axis / max(float(np.linalg.norm(axis)), 1e-300))
        r = evidence.correlation(projections, np.asarray(what.scores, dtype=np.float64))
        seen = BehaviourEvidence(
            name=what.name,
            n=len(what.scores),
            r=None if r is None else r.value,
            low=None if r is None else r.low,
            high=None if r is None else r.high,
            projections=projections.tolist(),
            scores=[float(s) for s in what.scores],
        )
    angles = {
        name: torch.rad2deg(principal_angles(directions.vectors[site], other.vectors[site])).tolist()
        for name, other in others.items()
        if site in other.vectors
    }
    return SiteValidity(
        site=str(site),
        k=basis.shape[0],
        auc=found.value,
        auc_low=found.low,
        auc_high=found.high,
        n_positive=len(positive),
        n_negative=len(negative),
        mean_positive=float(along[0].mean()),
        mean_negative=float(along[1].mean()),
        histogram=evidence.histogram(*along),
        auc_with_system_prompts=as_told,
        norm=float(directions.vectors[site][0].norm()),
        separation=separation,
        null_separation=null.tolist(),
        p_shuffled=evidence.p_value(separation, null),
        share_in_largest=share,
        largest_dimensions=largest,
        behaviour=seen,
        angles=angles,
    )


def _general_warnings(
    directions: Directions, held_out: Contrast, positions: str, behaviour: Behaviour | None
) -> list[Doubt]:
    found_on = directions.provenance.get("contrast")
    warnings = []
    if isinstance(found_on, Mapping) and found_on.get("data_hash") == held_out.data_hash():
        text = "they were validated on the very chats they were found on, which proves nothing; hold some out"
        warnings.append(Doubt("not_held_out", text, True))
    few = min(len(held_out.positive), len(held_out.negative))
    if few < 8:
        warnings.append(Doubt("few", f"only {few} held-out chats a side: intervals are wide", False))
    if held_out.kind == "system_prompts" and positions == "last_prompt":
        text = (
            "the sides were read at the end of prompts that differ by construction; the AUC is no evidence of behaviour"
        )
        warnings.append(Doubt("prompt_only", text, behaviour is None))
    return warnings


def _positions(directions: Directions, positions: Positions | None) -> Positions:
    if positions is not None:
        return positions
    recorded = directions.provenance.get("positions", "response")
    return recorded if recorded in get_args(Positions) else "response"


def _read_chats(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat],
    sites: Sequence[Site],
    positions: Positions,
    batch_size: int,
    template_kwargs: Mapping[str, Any] | None,
) -> dict[Site, Tensor]:
    rendered = [
        render(tokenizer, chat, template_kwargs=template_kwargs, where=f"chat {index}")
        for index, chat in enumerate(chats)
    ]
    return activations(model, rendered, sites, positions, batch_size)


def _without_system(chats: Sequence[Chat]) -> list[Chat]:
    return [[message for message in chat if message["role"] != "system"] for chat in chats]


def _coordinates(rows: Tensor, basis: Tensor) -> evidence.Array:
    return (rows.double() @ basis.double().T).numpy()  # type: ignore[no-any-return]


def _similarity(directions: Directions) -> list[list[float]]:
    first = torch.stack([rows[0] / rows[0].norm() for rows in directions.vectors.values()]).double()
    return (first @ first.T).clamp(-1, 1).tolist()  # type: ignore[no-any-return]
