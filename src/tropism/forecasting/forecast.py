"""`forecast`: the tiers in order, each trait's measures and verdict, and the rows to blame."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from tropism.data.chats import Chat, Example
from tropism.errors import UsageError
from tropism.evals.scorers.base import Sample as Scored
from tropism.forecasting import dry_run, evidence, gradient, projection, verdict
from tropism.forecasting.calibration import probability
from tropism.forecasting.found import Forecast, OpenShift, Options, TraitForecast
from tropism.forecasting.sample import Sample, take
from tropism.forecasting.trait import Trait, load_all
from tropism.site import sites as select_sites
from tropism.training.options import TrainOptions

MOST_SCORED = 20_000
"""Rows whose text the scorers read."""

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
    sites = select_sites(model, chosen.sites)
    # The scorer reads text alone, so it reads every row and not only the measured ones.
    everything = [example.chat for example in examples if example.response][:MOST_SCORED]
    say(f"reading {len(sample.chats)} rows and {len(sample.own)} own answers")
    h = projection.read(model, tokenizer, sample.chats, sites, **kwargs)
    own = projection.read(model, tokenizer, sample.own, sites, where="own answer", **kwargs)
    measured = []
    pulls = _Gradients(model, tokenizer, sample, chosen, template_kwargs) if tier != "projection" else None
    for trait in named:
        say(f"measuring {trait.name}")
        axis = projection.find_axis(
            model, tokenizer, trait, sites, max_new_tokens=chosen.max_new_tokens, seed=chosen.seed, **kwargs
        )
        measured.append(_measure(axis, sample, everything, h, own, pulls, chosen))
    corrected = _corrected(measured)
    dry: dict[str, dry_run.Predicted] = {}
    planned = None if recipe is None else recipe.steps(sample.rows)
    seen = [one.axis.trait for one, p in zip(measured, corrected, strict=True) if _undecided(one, p)]
    if planned is not None and fresh_model is not None and (tier == "dry_run" or (tier == "auto" and seen)):
        assert recipe is not None
        asked = named if tier == "dry_run" else seen
        dry = _dry(
            fresh_model, tokenizer, examples, sample, asked, recipe, planned, chosen, measured, template_kwargs, say
        )
    tiers = ["projection", *(["gradient"] if pulls else []), *(["dry_run"] if dry else [])]
    forecasts = [_conclude(one, p, dry.get(one.axis.trait.name)) for one, p in zip(measured, corrected, strict=True)]
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)
    return Forecast(
        name,
        len(examples),
        sample,
        tuple(forecasts),
        tuple(_open(h, own, sample, sites)),
        chosen,
        tuple(tiers),
        planned,
    )


@dataclass(frozen=True, eq=False)
class _Measured:
    axis: projection.Axis
    rated: evidence.Rated | None
    projected: evidence.Projected | None
    pulled: evidence.Pulled | None
    scores: np.ndarray | None


class _Gradients:
    """The rows' gradient sketches, read once and compared with every trait."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        sample: Sample,
        options: Options,
        template_kwargs: Mapping[str, Any] | None,
    ) -> None:
        self._model, self._tokenizer, self._options, self._kwargs = model, tokenizer, options, template_kwargs
        self.rows = gradient.units(self._sketch(sample.chats, "row"))

    def _sketch(self, chats: Sequence[Chat], where: str) -> np.ndarray:
        return gradient.sketches(
            self._model,
            self._tokenizer,
            chats,
            batch_size=max(1, self._options.batch_size // 2),
            seed=self._options.seed,
            template_kwargs=self._kwargs,
            where=where,
        )

    def compare(self, axis: projection.Axis) -> tuple[evidence.Pulled, np.ndarray]:
        """The data's pull toward a trait beside its null, and each row's cosine with the trait's gradient."""
        n = self._options.gradient_pairs
        sides = [gradient.units(self._sketch(side[:n], "pair")) for side in (axis.with_chats, axis.without_chats)]
        pairs = sides[0] - sides[1]
        trait, mean = pairs.mean(axis=0), self.rows.mean(axis=0)
        null = gradient.sign_flips(pairs, mean, draws=evidence.DRAWS, seed=self._options.seed)
        cosine = float(gradient.cosines(mean[None], trait)[0])
        return evidence.pulled(cosine, null), gradient.cosines(self.rows, trait)


def _measure(
    axis: projection.Axis,
    sample: Sample,
    everything: Sequence[Chat],
    h: projection.Activations,
    own: projection.Activations,
    pulls: _Gradients | None,
    options: Options,
) -> _Measured:
    rows = _scores(axis.trait, sample.chats)
    rated = evidence.rated(_finite(_scores(axis.trait, everything)), _finite(_scores(axis.trait, sample.own)))
    if not axis.valid:
        return _Measured(axis, rated, None, None, None)
    z, z_own = projection.along(axis, h, own), projection.along(axis, own, own)
    drawn: dict[str, Any] = {"draws": evidence.DRAWS, "seed": options.seed}
    null_dose = projection.random_shifts(axis, h, own, **drawn)
    null_tail = projection.random_spread(axis, h, varying=~evidence.standing_out(z), **drawn)
    projected = evidence.projected(z, z_own, null_dose, null_tail, seed=options.seed)
    # To blame first is a row in which the scorer finds the trait, then one that lies far along it.
    scores = z + np.where(np.isfinite(rows), rows, 0.0)
    if pulls is None:
        return _Measured(axis, rated, projected, None, scores)
    pulled, by_row = pulls.compare(axis)
    return _Measured(axis, rated, projected, pulled, scores + 0.1 * by_row)


def _corrected(measured: Sequence[_Measured]) -> list[verdict.Corrected]:
    """Holm's correction of each question over all traits; a trait that was not measured asks nothing."""
    questions = {
        "rate": [1.0 if one.rated is None else one.rated.p for one in measured],
        "dose": [1.0 if one.projected is None else one.projected.p_dose for one in measured],
        "tail": [1.0 if one.projected is None else one.projected.p_tail for one in measured],
    }
    adjusted = {name: verdict.adjusted(values) for name, values in questions.items()}
    return [verdict.Corrected(*(adjusted[name][i] for name in ("rate", "dose", "tail"))) for i in range(len(measured))]


def _undecided(one: _Measured, p: verdict.Corrected) -> bool:
    """Whether a dry run has something to decide: the rows carry the trait, and its scorer can see it grow."""
    if one.projected is None or one.axis.trait.scorer is None:
        return False
    return verdict.carried(one.rated, one.projected, p)


def _dry(
    fresh_model: Callable[[], Any],
    tokenizer: Any,
    examples: Sequence[Example],
    sample: Sample,
    traits: Sequence[Trait],
    recipe: TrainOptions,
    planned: int,
    options: Options,
    measured: Sequence[_Measured],
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
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        template_kwargs=template_kwargs,
        say=say,
    )
    predictions = {}
    for one in measured:
        name = one.axis.trait.name
        if name in found:
            ceiling = 1.0 if one.rated is None else one.rated.rows
            predicted = dry_run.predict(found[name], planned, ceiling, seed=options.seed)
            if predicted is not None:
                predictions[name] = predicted
    return predictions


def _conclude(one: _Measured, p: verdict.Corrected, dry: dry_run.Predicted | None) -> TraitForecast:
    said = verdict.decide(one.axis.auc, one.axis.valid, one.rated, one.projected, one.pulled, p, dry)
    return TraitForecast(
        trait=one.axis.trait,
        outcome=said.outcome,
        because=said.because,
        probability=None if one.projected is None else probability(one.rated, one.projected),
        auc=one.axis.auc,
        auc_low=one.axis.auc_low,
        sites=tuple(str(site) for site in one.axis.unit),
        p=p,
        rated=one.rated,
        projected=one.projected,
        pulled=one.pulled,
        dry=dry,
        scores=one.scores,
    )


def _scores(trait: Trait, chats: Sequence[Chat]) -> np.ndarray:
    """What the trait's scorer says of each chat's last message, in 0..1; NaN where unscored, or without a scorer."""
    scores = np.full(len(chats), np.nan)
    if trait.scorer is None:
        return scores
    for index, chat in enumerate(chats):
        score = trait.scorer.score(Scored(str(index), chat[:-1], str(chat[-1]["content"])))
        if score.value is not None:
            scores[index] = min(1.0, max(0.0, score.value))
    return scores


def _finite(scores: np.ndarray) -> np.ndarray:
    known: np.ndarray = scores[np.isfinite(scores)]
    return known


def _open(
    h: projection.Activations,
    own: projection.Activations,
    sample: Sample,
    sites: Sequence[Any],
    count: int = 3,
    shown: int = 5,
) -> list[OpenShift]:
    """The largest shifts of the data against own answers that need no name: principal components at the middle site."""
    site = sites[len(sites) // 2]
    shift = h[site].double().numpy() - own[site].double().numpy().mean(axis=0)
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
    pairs = sum(len(trait.pairs()) or 32 for trait in traits)
    forwards = measured + options.own + 2 * pairs
    said = f"{forwards:,} forward passes and {options.own} answers of at most {options.max_new_tokens} tokens"
    if tier != "projection":
        said += f", {measured + 2 * options.gradient_pairs * len(traits):,} backward passes through half of the blocks"
    return f"cost: {said}"
