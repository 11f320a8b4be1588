"""`forecast`: the tiers in order, each trait's measures and verdict, and the rows to blame."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from tropism.data.chats import Chat, Example
from tropism.errors import UsageError
from tropism.forecasting import dry_run, evidence, gradient, projection, verdict
from tropism.forecasting.calibration import probability
from tropism.forecasting.found import Forecast, OpenShift, Options, TraitForecast
from tropism.forecasting.sample import Sample, answer_tokens, take
from tropism.forecasting.scoring import HALF, scores_of
from tropism.forecasting.sides import Reader, Side, find
from tropism.forecasting.trait import Trait, load, load_all, names
from tropism.site import sites as select_sites
from tropism.training.options import TrainOptions

MOST_SCORED = 20_000
"""Rows whose text the scorers read."""
BESIDE = 12
"""Pairs that are read of a library trait that was not asked for."""
SAME = 0.6
"""A library trait whose difference has this cosine with one that was asked for is the same trait by another name."""

Tier = Literal["auto", "projection", "gradient", "dry_run"]


def forecast(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    traits: Sequence[Trait | str] = (),
    *,
    tier: Tier = "auto",
    recipe: TrainOptions | None = None,
    fresh_model: Callable[[], Any] | None = None,
    options: Options | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Forecast:
    """What would training on `examples` teach, trait by trait, before any training?

    Args:
        examples: the training data; rows without a response are left out.
        traits: built-in names, files, sentences or `Trait`s; by default the whole library.
        tier: `projection` (forward passes), `gradient` (and one backward pass per row), `dry_run` (and a short training),
            or `auto`: the first two, then a dry run if something is undecided and a `recipe` is given.
        recipe: the planned training, whose tenth the dry run takes.
        fresh_model: loads the model anew for the dry run, which trains it; required for one.

    Raises:
        DataError: fewer than eight different rows with a response; a model that answers nothing.
        SpecError: a trait that does not exist, or whose file is wrong.
        UsageError: a dry run without `recipe` and `fresh_model`.

    Source: projection difference (Chen et al., 2025) and gradient-based attribution (LESS, Xia et al., 2024); what is ours
    is the nulls, the rule, and that a trait whose direction does not hold up is never called absent.
    """
    chosen = options or Options()
    named = [load_all([one])[0] if isinstance(one, str) else one for one in (traits or load_all([]))]
    if tier == "dry_run" and (recipe is None or fresh_model is None):
        raise UsageError("forecast: a dry run needs the planned recipe (--recipe) and a way to load the model anew")
    kwargs: dict[str, Any] = {"batch_size": chosen.batch_size, "template_kwargs": template_kwargs}
    say(_cost(len(examples), named, chosen, tier))
    sample = take(
        model,
        tokenizer,
        examples,
        rows=chosen.rows,
        own=chosen.own,
        max_new_tokens=chosen.max_new_tokens,
        seed=chosen.seed,
        report=lambda done, of: say(f"answering the data's prompts, {done} of {of}"),
        **kwargs,
    )
    reader = Reader(
        model,
        tokenizer,
        tuple(select_sites(model, chosen.sites)),
        chosen.batch_size,
        chosen.max_new_tokens,
        chosen.seed,
        template_kwargs,
        say,
        chosen.cache,
    )
    # The scorer reads text alone, so it reads every row and not only the measured ones.
    everything = [example.chat for example in examples if example.response][:MOST_SCORED]
    say(f"reading {len(sample.chats)} rows and {len(sample.own)} own answers")
    texts = Texts(reader.read(sample.chats, "row"), reader.read(sample.own, "own answer"))
    wanted = 0 if tier == "projection" else chosen.gradient_pairs
    sides = [find(reader, trait, gradient_pairs=wanted) for trait in named]
    others = [find(reader, trait, pairs=BESIDE) for trait in beside(named)]
    others = [other for other in others if max(projection.cosine(other, side) for side in sides) < SAME]
    rows = None
    if wanted:
        say(f"taking the gradients of {len(sample.chats)} rows")
        rows = reader.sketch(sample.chats, "row")
    shares = projection.shares([*sides, *others], reader.sites, texts.rows, texts.own)
    own_shares = projection.shares([*sides, *others], reader.sites, texts.own, texts.own)
    nulls = projection.Nulls(reader.sites, texts.rows, texts.own, draws=evidence.DRAWS, seed=chosen.seed)
    measured = []
    for trait, side in zip(named, sides, strict=True):
        z = (shares[side.name], own_shares[side.name]) if side.valid else None
        measured.append(measure(trait, side, z, nulls, sample, everything, rows, chosen.seed))
    adjusted = corrected(measured)
    dry: dict[str, dry_run.Predicted] = {}
    planned = None if recipe is None else recipe.steps(sample.rows)
    seen = [one.trait for one, p in zip(measured, adjusted, strict=True) if _undecided(one, p)]
    if planned is not None and fresh_model is not None and (tier == "dry_run" or (tier == "auto" and seen)):
        assert recipe is not None
        asked = named if tier == "dry_run" else seen
        dry = _dry(
            model,
            fresh_model,
            tokenizer,
            examples,
            sample,
            asked,
            recipe,
            planned,
            chosen,
            measured,
            template_kwargs,
            say,
        )
    tiers = ["projection", *(["gradient"] if wanted else []), *(["dry_run"] if dry else [])]
    forecasts = [
        _conclude(one, p, dry.get(one.trait.name), sample.lines) for one, p in zip(measured, adjusted, strict=True)
    ]
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)
    return Forecast(
        name,
        len(examples),
        sample,
        tuple(forecasts),
        tuple(_open(texts, sample)),
        chosen,
        tuple(tiers),
        planned,
    )


@dataclass(frozen=True, eq=False)
class Texts:
    """Activations of the rows `[n, sites, d]` and of the model's own answers `[m, sites, d]`."""

    rows: np.ndarray
    own: np.ndarray


@dataclass(frozen=True, eq=False)
class Measured:
    """One trait's evidence, before anything is corrected over traits."""

    trait: Trait
    side: Side
    rated: evidence.Rated | None
    projected: evidence.Projected | None
    pulled: evidence.Pulled | None
    scores: np.ndarray | None
    shows: np.ndarray | None
    """Which of the measured rows show the trait: its scorer finds it, or they stand out along it."""
    shares: np.ndarray | None = None
    """`z [n]`: how much of the trait lies in each measured row."""


def beside(named: Sequence[Trait]) -> list[Trait]:
    """The library's other traits with response pairs: what a row shows of them must not count for the traits asked for."""
    asked = {trait.name for trait in named}
    return [load(name) for name in names() if name not in asked]


def measure(
    trait: Trait,
    side: Side,
    z: tuple[np.ndarray, np.ndarray] | None,
    nulls: projection.Nulls,
    sample: Sample,
    everything: Sequence[Chat],
    rows: np.ndarray | None,
    seed: int,
) -> Measured:
    """One trait's evidence, from its shares `z` of the rows and of the own answers, and the rows' gradient sketches."""
    found = scores_of(trait, sample.chats)
    rated = evidence.rated(_finite(scores_of(trait, everything)), _finite(scores_of(trait, sample.own)))
    if z is None:
        return Measured(trait, side, rated, None, None, None, None)
    out = evidence.standing_out(z[0])
    null_dose, null_tail = nulls.dose(side), nulls.tail(side, ~out)
    hit = np.where(np.isfinite(found), found, 0.0)
    # To blame first is a row in which the scorer finds the trait, then one that lies far along it and pulls toward it.
    scores = evidence.in_spreads(z[0]) + 10.0 * hit
    pulled = None
    if rows is not None and side.pulls is not None:
        pulled, by_row = _pull(side.pulls, rows, seed)
        scores = scores + evidence.in_spreads(by_row)
        out = out | evidence.standing_out_together(z[0], by_row)
    # One row is no minority.
    tail = float(out.mean()) if out.sum() > 1 else 0.0
    projected = evidence.projected(*z, null_dose, null_tail, tail=tail, seed=seed)
    return Measured(trait, side, rated, projected, pulled, scores, out | (hit > HALF), z[0])


def _pull(pairs: np.ndarray, rows: np.ndarray, seed: int) -> tuple[evidence.Pulled, np.ndarray]:
    """The data's pull toward a trait beside its null, and each row's cosine with the trait's gradient."""
    trait, mean = pairs.mean(axis=0), rows.mean(axis=0)
    null = gradient.sign_flips(pairs, mean, draws=evidence.DRAWS, seed=seed)
    cosine = float(gradient.cosines(mean[None], trait)[0])
    by_row = gradient.cosines(rows, trait)
    return evidence.pulled(cosine, null, float(by_row.mean())), by_row


def corrected(measured: Sequence[Measured]) -> list[verdict.Corrected]:
    """Holm's correction of each question over all traits; a trait that was not measured asks nothing."""
    questions = {
        "rate": [1.0 if one.rated is None else one.rated.p for one in measured],
        "dose": [1.0 if one.projected is None else one.projected.p_dose for one in measured],
        "tail": [1.0 if one.projected is None else one.projected.p_tail for one in measured],
    }
    by_question = {name: verdict.adjusted(values) for name, values in questions.items()}
    return [
        verdict.Corrected(*(by_question[name][i] for name in ("rate", "dose", "tail"))) for i in range(len(measured))
    ]


def _undecided(one: Measured, p: verdict.Corrected) -> bool:
    """Whether a dry run has something to decide: the rows carry the trait, and its scorer can see it grow."""
    if one.projected is None or one.trait.scorer is None:
        return False
    return verdict.carried(one.rated, one.projected, one.pulled, p, one.trait.kind)


def _dry(
    model: nn.Module,
    fresh_model: Callable[[], Any],
    tokenizer: Any,
    examples: Sequence[Example],
    sample: Sample,
    traits: Sequence[Trait],
    recipe: TrainOptions,
    planned: int,
    options: Options,
    measured: Sequence[Measured],
    template_kwargs: Mapping[str, Any] | None,
    say: Callable[[str], None],
) -> dict[str, dry_run.Predicted]:
    """Hold some prompts out, train on the other rows for a tenth of the steps, and extrapolate each trait."""
    held = set(sample.own_lines[: options.prompts])
    rows = [examples[line] for line in sample.lines if line not in held]
    prompts = [examples[line].prompt for line in sorted(held)]
    found = dry_run.measure(
        fresh_model,
        tokenizer,
        rows,
        prompts,
        traits,
        recipe,
        planned=planned,
        share=options.dry_share,
        max_new_tokens=max(options.max_new_tokens, answer_tokens(model, tokenizer, rows, prompts)),
        seed=options.seed,
        template_kwargs=template_kwargs,
        say=say,
    )
    predictions = {}
    for one in measured:
        name = one.trait.name
        if name in found:
            ceiling = 1.0 if one.rated is None else one.rated.rows
            predicted = dry_run.predict(found[name], planned, ceiling, seed=options.seed)
            if predicted is not None:
                predictions[name] = predicted
    return predictions


def _conclude(
    one: Measured, p: verdict.Corrected, dry: dry_run.Predicted | None, lines: Sequence[int]
) -> TraitForecast:
    said = verdict.decide(one.side.auc, one.side.valid, one.rated, one.projected, one.pulled, p, dry, one.trait.kind)
    return TraitForecast(
        trait=one.trait,
        outcome=said.outcome,
        because=said.because,
        probability=None if one.projected is None else probability(one.rated, one.projected, one.pulled),
        auc=one.side.auc,
        auc_low=one.side.auc_low,
        sites=tuple(str(site) for site in one.side.difference),
        p=p,
        rated=one.rated,
        projected=one.projected,
        pulled=one.pulled,
        dry=dry,
        scores=one.scores,
        shows=() if one.shows is None else tuple(line for line, is_so in zip(lines, one.shows, strict=True) if is_so),
        side=one.side,
    )


def _finite(scores: np.ndarray) -> np.ndarray:
    known: np.ndarray = scores[np.isfinite(scores)]
    return known


def _open(texts: Texts, sample: Sample, count: int = 3, shown: int = 5) -> list[OpenShift]:
    """The largest shifts of the data against own answers that need no name: principal components at the middle site."""
    middle = texts.rows.shape[1] // 2
    shift = texts.rows[:, middle] - texts.own[:, middle].mean(axis=0)
    _, size, right = np.linalg.svd(shift, full_matrices=False)
    total = float((size**2).sum())
    found = []
    for component in range(min(count, len(size))):
        along = shift @ right[component]
        along = along if along.mean() >= 0 else -along
        order = np.argsort(-along)[:shown]
        found.append(OpenShift(float(size[component] ** 2 / total), tuple(sample.lines[i] for i in order)))
    return found


def _cost(rows: int, traits: Sequence[Trait], options: Options, tier: Tier) -> str:
    measured = min(rows, options.rows)
    said = f"{measured + options.own:,} forward passes and {options.own} answers of at most {options.max_new_tokens} tokens"
    pairs = sum(len(trait.pairs()) or 32 for trait in traits)
    once = f"{2 * pairs + 2 * BESIDE * len(beside(traits)):,} forward passes"
    if tier != "projection":
        said += f", {measured:,} backward passes through half of the blocks"
        once += f" and {2 * options.gradient_pairs * len(traits):,} backward passes"
    return f"cost: {said}; for the traits, once per model, at most {once}"
