"""`find_directions`: a contrast through a model, streamed to a finder, into `Directions` with their provenance."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from tropism import hooks
from tropism.activations.mode import adapters_off
from tropism.data.render import Positions, Rendered
from tropism.directions import provenance
from tropism.directions.answering import answer
from tropism.directions.artifact import Directions
from tropism.directions.contrasts import Contrast
from tropism.directions.covariance import CovarianceSketch
from tropism.directions.finder import Finder, Unit, Window
from tropism.directions.gradients import activations_and_gradients
from tropism.directions.mean_difference import MeanDifference
from tropism.directions.stream import WINDOW_BATCHES, activations, reading
from tropism.errors import DirectionsError, ModelError
from tropism.site import Site, width


@dataclass(frozen=True)
class Side:
    """One side of a contrast, ready to be read: rendered chats, and the model that reads them."""

    rendered: list[Rendered]
    model: nn.Module
    adapters: bool


def find_directions(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    *,
    sites: Sequence[Site],
    finder: Finder | None = None,
    positions: Positions = "response",
    batch_size: int = 16,
    template_kwargs: Mapping[str, Any] | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    pool: Unit | None = None,
) -> Directions:
    """Directions at `sites` that tell the positive side of a contrast from the negative.

    Activations stream: a window of a few batches at a time, through the decoder without its output embedding, up to the
    last site. With `MeanDifference`, memory does not depend on the number of chats.

    Args:
        sites: where, as from `tp.sites(model, "25%..75%")`.
        finder: `MeanDifference()` by default; `PCA(k=...)`, `LogisticProbe()`, `SAELatents(...)`.
        positions: which tokens count: `response` (mean over response tokens), `last_prompt`, `first_response`, `all`.
        template_kwargs: for the chat template.
        max_new_tokens: length of the answers generated for a contrast of system prompts without responses.
        seed: of randomised finders and of the covariance sketch; no global generator is used.
        pool: what the finder is given: each `chat`'s mean over its positions, or every `token`; by default as it says itself
            (`finder.unit`).

    Raises:
        DirectionsError: no sites, activations that are not finite, a finder that finds nothing.
        DataError: chats that cannot be rendered, have no tokens at `positions`, or hold no contrast.
        SiteError: a site that the model does not have.
        AttachError: a guard is attached to the model.

    The model is read in evaluation mode and left in its own; `requires_grad` is not touched.
    """
    finder = MeanDifference() if finder is None else finder
    where = tuple(dict.fromkeys(sites))
    check_sites(model, where)
    finder.check_sites(where)
    for name, number in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if number < 1:
            raise DirectionsError(f"find_directions: {name} must be at least 1, found {number}")
    d = width(model)
    collectors = {site: finder.collector(site, d, seed) for site in where}
    sketches = {site: CovarianceSketch(d, seed) for site in where}
    models = contrast_models(model, contrast)
    with reading(*models):
        contrast, generated = with_answers(
            model, tokenizer, contrast, positions, template_kwargs, max_new_tokens, batch_size
        )
        sides = render_sides(model, tokenizer, contrast, template_kwargs)
        for site_windows in windows(
            sides, contrast.paired, where, positions, batch_size, pool or finder.unit, finder.needs_gradients
        ):
            for site, window in site_windows.items():
                collectors[site].add(window)
                sketches[site].add(window)
    found = {site: collector.result() for site, collector in collectors.items()}
    about = {
        "model": provenance.of_model(model),
        "tokenizer_hash": provenance.tokenizer_hash(tokenizer),
        # A contrast that says what is pooled is asked first, so the finder's own choice was not used.
        "finder": {name: pool if pool and name == "per" else value for name, value in finder.options().items()},
        "positions": positions,
        **({} if pool is None else {"pool": pool}),
        "contrast": {
            "kind": contrast.kind,
            "positive": len(contrast.positive),
            "negative": len(contrast.negative),
            "data_hash": contrast.data_hash(),
            "generated_responses": generated,
            **contrast.about,
        },
        "found": {str(site): dict(one.facts) for site, one in found.items()},
        "seed": seed,
        "tropism": provenance.version(),
    }
    return Directions(
        {site: one.vectors for site, one in found.items()},
        about,
        {site: sketch.factor() for site, sketch in sketches.items()},
    )


def pooled_sides(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    sites: Sequence[Site],
    *,
    positions: Positions = "response",
    batch_size: int = 16,
    template_kwargs: Mapping[str, Any] | None = None,
    max_new_tokens: int = 64,
) -> dict[Site, tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]]:
    """Every chat's pooled activation, positive and negative, per site: what a validity report looks at."""
    where = tuple(sites)
    check_sites(model, where)
    with reading(*contrast_models(model, contrast)):
        contrast, _ = with_answers(model, tokenizer, contrast, positions, template_kwargs, max_new_tokens, batch_size)
        sides = render_sides(model, tokenizer, contrast, template_kwargs)
        read = [_read(side, side.rendered, where, positions, batch_size, "chat") for side in sides]
    return {site: (read[0][site], read[1][site]) for site in where}


def check_sites(model: nn.Module, sites: Sequence[Site]) -> None:
    """Raise `DirectionsError` for no sites at all, `SiteError` for one that the model does not have."""
    if not sites:
        raise DirectionsError("sites must name at least one site, found none; for example tp.sites(model, '25%..75%')")
    for site in sites:
        hooks.module_at(model, site)


def contrast_models(model: nn.Module, contrast: Contrast) -> list[nn.Module]:
    """The models that a contrast reads; those of a model contrast must be of the shape of `model`."""
    if contrast.tuned is None:
        return [model]
    models = [contrast.tuned, contrast.base] if contrast.base is not None else [contrast.tuned]
    for other in models:
        if provenance.config_hash(other) != provenance.config_hash(model):
            raise ModelError(
                "find_directions: the models of Contrast.of_models must have the architecture of the model given; "
                f"found {type(other).__name__} with another config hash"
            )
    return models


def with_answers(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    positions: Positions,
    template_kwargs: Mapping[str, Any] | None,
    max_new_tokens: int,
    batch_size: int,
) -> tuple[Contrast, int]:
    """The contrast with the model's own answers, where positions ask for responses and system prompts came without."""
    if positions not in ("response", "first_response") or contrast.has_responses or contrast.kind != "system_prompts":
        return contrast, 0
    options = (template_kwargs, max_new_tokens, batch_size)
    positive = answer(model, tokenizer, contrast.positive, *options)
    negative = answer(model, tokenizer, contrast.negative, *options)
    return replace(contrast, positive=positive, negative=negative), len(positive) + len(negative)


def render_sides(
    model: nn.Module, tokenizer: Any, contrast: Contrast, template_kwargs: Mapping[str, Any] | None
) -> tuple[Side, Side]:
    """Both sides, rendered, with the model (and whether its adapters are on) that reads each."""
    positive, negative = contrast.render(tokenizer, template_kwargs)
    if contrast.tuned is None:
        return Side(positive, model, True), Side(negative, model, True)
    if contrast.base is None:
        return Side(positive, contrast.tuned, True), Side(negative, contrast.tuned, False)
    return Side(positive, contrast.tuned, True), Side(negative, contrast.base, True)


def windows(
    sides: tuple[Side, Side],
    paired: bool,
    sites: tuple[Site, ...],
    positions: Positions,
    batch_size: int,
    unit: Unit,
    gradients: bool,
) -> Iterator[dict[Site, Window]]:
    """Both sides' activations, a window of like lengths at a time; rows of a paired contrast stay paired."""
    orders = [sorted(range(len(side.rendered)), key=lambda i, s=side: (-len(s.rendered[i]), i)) for side in sides]  # type: ignore[misc]
    if paired:
        orders[1] = orders[0]
    # Tokens pair only where both sides read the same ones, in a contrast of models.
    paired = paired and (unit == "chat" or sides[0].rendered is sides[1].rendered)
    count = math.ceil(max(map(len, orders)) / (WINDOW_BATCHES * batch_size))
    for number in range(count):
        # Even cuts, so that each window has its share of the smaller side too.
        chosen = [
            [side.rendered[i] for i in order[len(order) * number // count : len(order) * (number + 1) // count]]
            for side, order in zip(sides, orders, strict=True)
        ]
        if gradients:
            yield _window_with_gradients(sides, chosen, paired, sites, positions, batch_size, unit)
            continue
        positive, negative = (
            _read(side, rendered, sites, positions, batch_size, unit)
            for side, rendered in zip(sides, chosen, strict=True)
        )
        yield {site: Window(positive[site], negative[site], paired) for site in sites}


def _read(
    side: Side, rendered: Sequence[Rendered], sites: tuple[Site, ...], positions: Positions, batch_size: int, unit: Unit
) -> dict[Site, Tensor]:
    with nullcontext() if side.adapters else adapters_off(side.model):
        return activations(side.model, rendered, sites, positions, batch_size, unit)


def _window_with_gradients(
    sides: tuple[Side, Side],
    chosen: Sequence[Sequence[Rendered]],
    paired: bool,
    sites: tuple[Site, ...],
    positions: Positions,
    batch_size: int,
    unit: Unit,
) -> dict[Site, Window]:
    read = []
    for side, rendered in zip(sides, chosen, strict=True):
        with nullcontext() if side.adapters else adapters_off(side.model):
            read.append(activations_and_gradients(side.model, rendered, sites, positions, batch_size, unit))
    (positive, positive_gradients), (negative, negative_gradients) = read
    return {
        site: Window(positive[site], negative[site], paired, positive_gradients[site], negative_gradients[site])
        for site in sites
    }
