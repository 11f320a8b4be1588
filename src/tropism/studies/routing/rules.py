"""Does gradient routing put a trait into a part that can be taken out? Claims by rule, from the results table alone.

`T(c, mode)` is the trait rate of a condition in an ablation mode, one number per seed; `removed(c) = T(c, full) −
T(c, forget_ablated)`; `m` the margin. Every contrast is formed within a seed, with its 95 % interval over seeds.

1. **Localises**: `removed(routed)` lies above 0, and above `removed` of every control: the same two adapters without
   routing (half of everything goes with half of the parameters), and random labels.
2. **Partly labelled**: the same of the partly labelled arm.
3. **Ablating retain does not remove it**: the trait was learned (`T(routed, full) − T(base)` above 0), and
   `T(routed, retain_ablated) − T(routed, full)` above `−m`.
4. **Absorption**: the arm trained without the labelled examples learned the trait (`T(filtered, full) − T(base)` above 0),
   and `T(filtered, full) − T(partial, forget_ablated)` lies above 0: what was not labelled went with the adapter too.
   Its number is `1 − (T(partial, forget_ablated) − T(base)) / (T(filtered, full) − T(base))`, seed by seed.
5. **Near orthogonal**: the mean `|cosine|` of the two ΔW, and the overlap of their spaces above that of random adapters,
   are both below `near`.

*Supported* needs every part; *not supported* one part whose interval lies wholly on the wrong side of the margin;
everything else, and fewer than three seeds, is *undecided*.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tropism import stats
from tropism.names import BASE
from tropism.results.rules import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Requirement,
    all_numbers,
    decide,
    first_without_interval,
    shown,
    why_open,
)
from tropism.results.section import Claim
from tropism.stats import Bounds, Estimate

COSINE, OVERLAP, OVERLAP_NULL = "geometry_cosine", "geometry_overlap", "geometry_overlap_null"
"""Metrics of the geometry: means over weights of `|cosine|`, of both overlaps, and of the null's overlaps."""
GEOMETRY: Bounds = (0.0, 1.0)
"""What each of them can be."""


@dataclass(frozen=True)
class Arms:
    """Which condition plays which part; None where the study has none."""

    routed: str = "routed"
    partial: str | None = "routed_50"
    unrouted: str = "baseline"
    controls: Sequence[str] = ("random",)
    filtered: str | None = "filtered"


@dataclass(frozen=True, eq=False)
class Rates:
    """The trait rate of every run and mode, from the results."""

    results: pd.DataFrame
    metric: str
    eval_set: str
    bounds: Bounds | None = None
    """The least and the largest value that the trait's metric can take; None where it has no bounds."""

    def by_seed(self, condition: str, mode: str = "full") -> "pd.Series[float]":
        """Return seed → rate; the base model's one rate has the seed −1."""
        return _values(self.results, self.metric, self.eval_set, condition, mode)

    def rate(self, condition: str, mode: str = "full") -> Estimate | None:
        """Return the rate with its interval over seeds; None without a run."""
        return estimate(self.by_seed(condition, mode), self.bounds)

    def contrast(self, *terms: tuple[int, str, str]) -> Estimate | None:
        """Return `Σ sign · T(condition, mode)` within each seed; None where no seed has every term."""
        values = _sum([(sign, self.by_seed(condition, mode)) for sign, condition, mode in terms])
        return estimate(values, stats.bounds_of_sum(self.bounds, [sign for sign, _, _ in terms]))


def claims(rates: Rates, arms: Arms, *, margin: float = 0.1, near: float = 0.1) -> list[Claim]:
    """Return the claims of a routing study, in the order of the rules above."""
    found = [localises(rates, arms, arms.routed, margin, "Routing localises the trait")]
    if arms.partial is not None:
        found.append(localises(rates, arms, arms.partial, margin, "Routing with part of the labels still works"))
    found.append(retain_keeps(rates, arms, margin))
    if arms.partial is not None and arms.filtered is not None:
        found.append(absorbs(rates, arms.partial, arms.filtered, margin))
    found.append(orthogonal(rates.results, arms, near))
    return found


def localises(rates: Rates, arms: Arms, routed: str, margin: float, claim: str) -> Claim:
    """Decide rules 1 and 2: more of the trait goes with the forget adapter than in any control."""
    # One contrast of four terms within each seed, not a difference of two estimates: what a seed does to all cancels.
    gone = ((1, routed, "full"), (-1, routed, "forget_ablated"))
    removed = rates.contrast(*gone)
    parts = [Requirement("removed", removed, above=0.0, against=margin)]
    for control in (arms.unrouted, *arms.controls):
        beyond = rates.contrast(*gone, (-1, control, "full"), (1, control, "forget_ablated"))
        parts.append(Requirement(f"removed − removed of {control}", beyond, above=0.0, against=margin))
    left = rates.contrast((1, routed, "forget_ablated"), (-1, BASE, "full"))
    said = f"without the forget adapter {routed!r} loses {shown(removed)} of the trait rate"
    return _all_above_zero(claim, said, parts, margin, {f"left: {routed} − base": left})


def retain_keeps(rates: Rates, arms: Arms, margin: float) -> Claim:
    """Decide rule 3: the trait does not live in the retain adapter."""
    claim = "Ablating the retain adapter does not remove the trait"
    learned = rates.contrast((1, arms.routed, "full"), (-1, BASE, "full"))
    change = rates.contrast((1, arms.routed, "retain_ablated"), (-1, arms.routed, "full"))
    numbers: dict[str, Any] = all_numbers({"learned": learned, "retain_ablated − full": change})
    numbers["margin"] = margin
    if (because := _nothing_learned(learned, "that the full model learned the trait is not beyond doubt")) is not None:
        return Claim(claim, UNDECIDED, because, numbers)
    kept = Requirement("retain_ablated − full", change, above=-margin)
    if change is None or change.low is None:
        return Claim(claim, UNDECIDED, f"{why_open(change)}.", numbers)
    said = f"without the retain adapter the trait rate changes by {shown(change)}"
    ends = {
        SUPPORTED: f", which is no loss beyond {margin:g}",
        NOT_SUPPORTED: f", a loss beyond {margin:g}",
        UNDECIDED: f": {why_open(change)}",
    }
    return Claim(claim, kept.verdict, f"{said}{ends[kept.verdict]}.", numbers)


def absorbs(rates: Rates, partial: str, filtered: str, margin: float) -> Claim:
    """Decide rule 4, with the share that was absorbed."""
    claim = "Unlabelled examples of the trait are absorbed by the forget adapter"
    learned = rates.contrast((1, filtered, "full"), (-1, BASE, "full"))
    beyond = rates.contrast((1, filtered, "full"), (-1, partial, "forget_ablated"))
    share = absorption(rates, partial, filtered)
    nothing = _nothing_learned(learned, "filtering left no trait beyond doubt", ", so there is nothing to absorb")
    if nothing is not None:
        numbers = all_numbers({"filtered − base": learned, "filtered − routed": beyond, "absorption": share})
        return Claim(claim, UNDECIDED, nothing, numbers)
    said = f"the trait rate is lower by {shown(beyond)} than after filtering; absorption is {shown(share)}"
    part = Requirement("filtered − routed", beyond, above=0.0, against=margin)
    return _all_above_zero(claim, said, [part], margin, {"filtered − base": learned, "absorption": share})


def absorption(rates: Rates, partial: str, filtered: str) -> Estimate | None:
    """Return the share of the unlabelled trait that goes with the forget adapter, seed by seed; 1 all, 0 none.

    None where in some seed the filtered arm has no more of the trait than the base model: a mean over the other seeds
    would choose its seeds by their outcome.
    """
    left = _sum([(1, rates.by_seed(partial, "forget_ablated")), (-1, rates.by_seed(BASE))])
    learned = _sum([(1, rates.by_seed(filtered)), (-1, rates.by_seed(BASE))])
    left, learned = left.align(learned, join="inner")
    if left.empty or not (learned > 0).all():
        return None
    return estimate(1 - left / learned)


def orthogonal(results: pd.DataFrame, arms: Arms, near: float) -> Claim:
    """Decide rule 5, with the unrouted adapters beside."""
    claim = "The two adapters' subspaces are near orthogonal"
    routed, unrouted = _geometry(results, arms.routed), _geometry(results, arms.unrouted)
    parts, beside = [], {}
    for name, (values, weights) in routed.items():
        found = estimate(values, stats.bounds_of_sum(GEOMETRY, weights))
        parts.append(Requirement(name, found, below=near))
        both = _sum([(1, values), (-1, unrouted[name][0])])
        weights_of_both = (*weights, *(-weight for weight in weights))
        beside[f"{name}, routed − unrouted"] = estimate(both, stats.bounds_of_sum(GEOMETRY, weights_of_both))
    numbers: dict[str, Any] = all_numbers({**{part.name: part.estimate for part in parts}, **beside})
    numbers["near"] = near
    cosine, overlap = parts
    said = (
        f"the mean |cosine| is {shown(cosine.estimate)}, the overlap less that of random adapters "
        f"{shown(overlap.estimate)}"
    )
    verdict = decide(parts)
    if verdict == NOT_SUPPORTED:
        return Claim(claim, verdict, f"{said}; one lies above {near:g}.", numbers)
    if (unknown := first_without_interval(parts)) is not None:
        return Claim(claim, verdict, f"{said}: {why_open(unknown.estimate)}.", numbers)
    end = f", both below {near:g}" if verdict == SUPPORTED else f": an interval holds {near:g}"
    return Claim(claim, verdict, f"{said}{end}.", numbers)


def estimate(values: "pd.Series[float]", bounds: Bounds | None = None) -> Estimate | None:
    """Return the mean over seeds with its interval, which ends at the bounds; None where no seed has a value."""
    known = values.dropna()
    if known.empty:
        return None
    return stats.interval(known.to_numpy(np.float64)[:, None], contrast=True).within(bounds)


def _geometry(results: pd.DataFrame, condition: str) -> dict[str, tuple["pd.Series[float]", tuple[int, ...]]]:
    """What rule 5 asks about, by name: its values seed by seed, and the weights of the metrics in it."""
    cosine = _values(results, COSINE, "weights", condition, "full")
    overlap = _values(results, OVERLAP, "weights", condition, "full")
    null = _values(results, OVERLAP_NULL, "weights", condition, "full")
    return {"|cosine|": (cosine, (1,)), "overlap − null": (_sum([(1, overlap), (-1, null)]), (1, -1))}


def _values(results: pd.DataFrame, metric: str, eval_set: str, condition: str, mode: str) -> "pd.Series[float]":
    rows = results[
        (results["metric"] == metric) & (results["eval_set"] == eval_set)
        & (results["condition"] == condition) & (results["mode"] == mode)
    ]  # fmt: skip
    return pd.Series(rows["value"].to_numpy(float), index=rows["seed"].fillna(-1).astype(int).to_numpy())


def _sum(terms: Sequence[tuple[int, "pd.Series[float]"]]) -> "pd.Series[float]":
    """The signed sum over the seeds that every term has; the base model (seed −1) stands beside each seed."""
    # A term without any run has no seeds, and neither has the sum.
    seeds = sorted(set.intersection(*(set(values.index) for _, values in terms if list(values.index) != [-1])))
    totals = []
    for seed in seeds:
        of_seed = [sign * float(values.get(seed, values.get(-1, math.nan))) for sign, values in terms]
        totals.append(sum(of_seed))
    return pd.Series(totals, index=seeds, dtype=float)


def _nothing_learned(learned: Estimate | None, said: str, end: str = "") -> str | None:
    """Say why nothing can be asked of a trait that may not have been learned; None where it was."""
    if learned is None or learned.low is None:
        return f"{why_open(learned)}."
    return None if learned.lies_above(0.0) else f"{said} ({shown(learned)}){end}."


def _all_above_zero(
    claim: str, said: str, parts: Sequence[Requirement], margin: float, beside: Mapping[str, Estimate | None]
) -> Claim:
    """Return the claim that needs every part above 0; `beside` are numbers that decide nothing."""
    numbers: dict[str, Any] = all_numbers({**{part.name: part.estimate for part in parts}, **beside})
    numbers["margin"] = margin
    listed = "; ".join(f"{part.name} {shown(part.estimate)}" for part in parts)
    verdict = decide(parts)
    unknown = first_without_interval(parts)
    if verdict == NOT_SUPPORTED:
        # A certain loss decides, even where another part is open.
        refuted = next(part for part in parts if part.refuted)
        because = f"{refuted.name} lies below {margin:g}"
    elif verdict == SUPPORTED:
        because = "every interval lies above 0"
    else:
        because = why_open(unknown.estimate) if unknown is not None else "an interval decides neither way"
    return Claim(claim, verdict, f"{said} ({listed}): {because}.", numbers)
