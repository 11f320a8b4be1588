"""Does gradient routing put a trait into a part that can be taken out? Claims by rule, from the results table alone.

`T(c, mode)` is the trait rate of a condition in an ablation mode, one number a seed; `removed(c) = T(c, full) −
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
   both below `near`.

*Supported* needs every part; *not supported* one part whose interval lies wholly on the wrong side of the margin; all
else, and fewer than three seeds, is *undecided*.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tropism import stats
from tropism.names import BASE
from tropism.results.section import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Claim, Table
from tropism.results.text import words
from tropism.stats import Estimate, Verdict
from tropism.studies.refusal.rules import as_numbers, said_of

COSINE, OVERLAP, OVERLAP_NULL = "geometry_cosine", "geometry_overlap", "geometry_overlap_null"
"""Metrics of the geometry: means over weights of `|cosine|`, of both overlaps, and of the null's overlaps."""


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
    """The trait rate of every run and mode, from `results.csv`."""

    results: pd.DataFrame
    metric: str
    eval_set: str

    def by_seed(self, condition: str, mode: str = "full") -> "pd.Series[float]":
        """Seed → rate; the base model's one rate has the seed −1."""
        return _values(self.results, self.metric, self.eval_set, condition, mode)

    def contrast(self, *terms: tuple[int, str, str]) -> Estimate | None:
        """`Σ sign · T(condition, mode)` within each seed; None where no seed has every term."""
        return _estimate(_sum([(sign, self.by_seed(condition, mode)) for sign, condition, mode in terms]))


def claims(rates: Rates, arms: Arms, *, margin: float = 0.1, near: float = 0.1) -> list[Claim]:
    """The claim table of a routing study, in the order of the rules above."""
    found = [localises(rates, arms, arms.routed, margin, "Routing localises the trait")]
    if arms.partial is not None:
        found.append(localises(rates, arms, arms.partial, margin, "Routing with part of the labels still works"))
    found.append(retain_keeps(rates, arms, margin))
    if arms.partial is not None and arms.filtered is not None:
        found.append(absorbs(rates, arms.partial, arms.filtered, margin))
    found.append(orthogonal(rates.results, arms, near))
    return found


def localises(rates: Rates, arms: Arms, routed: str, margin: float, claim: str) -> Claim:
    """Rules 1 and 2: more of the trait goes with the forget adapter than in any control."""
    gone = ((1, routed, "full"), (-1, routed, "forget_ablated"))
    parts = {"removed": rates.contrast(*gone)}
    for control in (arms.unrouted, *arms.controls):
        back = ((-1, control, "full"), (1, control, "forget_ablated"))
        parts[f"removed − removed of {control}"] = rates.contrast(*gone, *back)
    left = rates.contrast((1, routed, "forget_ablated"), (-1, BASE, "full"))
    said = f"without the forget adapter {routed!r} loses {said_of(parts['removed'])} of the trait rate"
    return _all_above_zero(claim, said, parts, margin, {f"left: {routed} − base": left})


def retain_keeps(rates: Rates, arms: Arms, margin: float) -> Claim:
    """Rule 3."""
    claim = "Ablating the retain adapter does not remove the trait"
    learned = rates.contrast((1, arms.routed, "full"), (-1, BASE, "full"))
    change = rates.contrast((1, arms.routed, "retain_ablated"), (-1, arms.routed, "full"))
    numbers = {"learned": as_numbers(learned), "retain_ablated − full": as_numbers(change), "margin": margin}
    if (open_because := _why_open(learned)) is not None:
        return Claim(claim, UNDECIDED, open_because, numbers)
    if not _above(learned, 0):
        because = f"that the full model learned the trait is not beyond doubt ({said_of(learned)})."
        return Claim(claim, UNDECIDED, because, numbers)
    said = f"without the retain adapter the trait rate changes by {said_of(change)}"
    if change is None or (open_because := _why_open(change)) is not None:
        return Claim(claim, UNDECIDED, open_because or f"{said}.", numbers)
    match stats.noninferior(change, margin):
        case Verdict.KEPT:
            return Claim(claim, SUPPORTED, f"{said}, which is no loss beyond {margin:g}.", numbers)
        case Verdict.LOST:
            return Claim(claim, NOT_SUPPORTED, f"{said}, a loss beyond {margin:g}.", numbers)
    return Claim(claim, UNDECIDED, f"{said}: the interval decides neither way.", numbers)


def absorbs(rates: Rates, partial: str, filtered: str, margin: float) -> Claim:
    """Rule 4, with the share that was absorbed."""
    claim = "Unlabelled examples of the trait are absorbed by the forget adapter"
    learned = rates.contrast((1, filtered, "full"), (-1, BASE, "full"))
    beyond = rates.contrast((1, filtered, "full"), (-1, partial, "forget_ablated"))
    share = absorption(rates, partial, filtered)
    numbers = {
        "filtered − base": as_numbers(learned), "filtered − routed": as_numbers(beyond), "absorption": as_numbers(share)
    }  # fmt: skip
    if (open_because := _why_open(learned)) is None and not _above(learned, 0):
        open_because = f"filtering left no trait beyond doubt ({said_of(learned)}), so there is nothing to absorb."
    if open_because is not None:
        return Claim(claim, UNDECIDED, open_because, numbers)
    said = f"the trait rate is lower by {said_of(beyond)} than after filtering; absorption is {said_of(share)}"
    beside = {"filtered − base": learned, "absorption": share}
    return _all_above_zero(claim, said, {"filtered − routed": beyond}, margin, beside)


def absorption(rates: Rates, partial: str, filtered: str) -> Estimate | None:
    """The share of the unlabelled trait that goes with the forget adapter, seed by seed; 1 all, 0 none.

    None where in some seed the filtered arm has no more of the trait than the base model: a mean over the other seeds
    would choose its seeds by their outcome.
    """
    left = _sum([(1, rates.by_seed(partial, "forget_ablated")), (-1, rates.by_seed(BASE))])
    learned = _sum([(1, rates.by_seed(filtered)), (-1, rates.by_seed(BASE))])
    left, learned = left.align(learned, join="inner")
    if left.empty or not (learned > 0).all():
        return None
    return _estimate(1 - left / learned)


def orthogonal(results: pd.DataFrame, arms: Arms, near: float) -> Claim:
    """Rule 5, with the unrouted adapters beside."""
    claim = "The two adapters' subspaces are near orthogonal"

    def geometry(condition: str) -> dict[str, "pd.Series[float]"]:
        metrics = (COSINE, OVERLAP, OVERLAP_NULL)
        cosine, overlap, null = (_values(results, metric, "weights", condition, "full") for metric in metrics)
        return {"|cosine|": cosine, "overlap − null": _sum([(1, overlap), (-1, null)])}

    routed, unrouted = geometry(arms.routed), geometry(arms.unrouted)
    parts = {name: _estimate(values) for name, values in routed.items()}
    beside = {
        f"{name}, routed − unrouted": _estimate(_sum([(1, routed[name]), (-1, unrouted[name])])) for name in routed
    }
    numbers: dict[str, Any] = {name: as_numbers(e) for name, e in {**parts, **beside}.items()} | {"near": near}
    said = (
        f"the mean |cosine| is {said_of(parts['|cosine|'])}, the overlap less that of random adapters "
        f"{said_of(parts['overlap − null'])}"
    )
    if any(_above(e, near) for e in parts.values()):
        return Claim(claim, NOT_SUPPORTED, f"{said}; one lies above {near:g}.", numbers)
    for estimate in parts.values():
        if (because := _why_open(estimate)) is not None:
            return Claim(claim, UNDECIDED, f"{said}: {because}", numbers)
    if all(_below(e, near) for e in parts.values()):
        return Claim(claim, SUPPORTED, f"{said}, both below {near:g}.", numbers)
    return Claim(claim, UNDECIDED, f"{said}: an interval holds {near:g}.", numbers)


def in_words(rates: Rates, arms: Arms) -> str:
    """The trait of the routed arm in each mode, and of the unrouted one beside it, as one sentence; empty without runs."""

    def said(condition: str, mode: str) -> str | None:
        found = _rate(rates.by_seed(condition, mode))
        return None if found is None else f"{found.value:.2f}"

    whole, removed, alone = (said(arms.routed, mode) for mode in ("full", "forget_ablated", "retain_ablated"))
    if whole is None or removed is None or alone is None:
        return ""
    unrouted = said(arms.unrouted, "retain_ablated")
    beside = f" ({unrouted} without routing)" if unrouted is not None else ""
    return (
        f"{words(rates.metric)} is {whole} with both adapters, {removed} without the forget adapter, and {alone} in the forget "
        f"adapter alone{beside}."
    )


def modes_table(rates: Rates) -> Table:
    """The trait rate of every condition in every mode, with its interval over seeds."""
    held = rates.results[(rates.results["metric"] == rates.metric) & (rates.results["eval_set"] == rates.eval_set)]
    rows = []
    for condition, mode in held[["condition", "mode"]].drop_duplicates().itertuples(index=False):
        estimate = _rate(rates.by_seed(condition, mode))
        if estimate is not None:
            rows.append([condition, mode, estimate.seeds, estimate.value, estimate.low, estimate.high])
    return Table(
        f"{rates.metric} on {rates.eval_set}, by mode", ["condition", "mode", "seeds", "value", "low", "high"], rows,
        "Means over seeds, with 95 % intervals where three or more seeds ran.",
    )  # fmt: skip


def recall_curves(rates: Rates, curves: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The trait by label recall: `arm, recall, value, low, high`, an arm a curve and mode (`full`, `forget_ablated`).

    `curves` maps a curve's name to its conditions, each with the share of the trait's examples that is labelled. A
    condition without a finished run has no point.
    """
    rows = []
    for name, conditions in curves.items():
        for mode in ("full", "forget_ablated"):
            for condition, recall in conditions.items():
                if (found := _rate(rates.by_seed(condition, mode))) is not None:
                    ends = (math.nan if end is None else end for end in (found.low, found.high))
                    rows.append((f"{name}, {mode}", recall, found.value, *ends))
    return pd.DataFrame(rows, columns=["arm", "recall", "value", "low", "high"])


def recall_table(rates: Rates, curves: Mapping[str, Mapping[str, float]], arms: Arms) -> Table:
    """The trait without the forget adapter by label recall, and absorption where an arm shows what was to be absorbed.

    That arm is `filtered` for `partial`; where nothing is labelled, filtering leaves out nothing, so it is the condition
    itself, and the number is what ablating unrouted adapters removes: what absorption has to exceed.
    """
    unlabelled = {arms.partial: arms.filtered} if arms.partial is not None else {}
    rows: list[list[Any]] = []
    for name, conditions in curves.items():
        for condition, recall in sorted(conditions.items(), key=lambda held: held[1]):
            trait = _rate(rates.by_seed(condition, "forget_ablated"))
            without = condition if recall == 0 else unlabelled.get(condition)
            share = None if without is None else absorption(rates, condition, without)
            of_trait = (None,) * 4 if trait is None else (trait.seeds, trait.value, trait.low, trait.high)
            of_share = (None,) * 3 if share is None else (share.value, share.low, share.high)
            rows.append([name, recall, condition, *of_trait, *of_share])
    return Table(
        f"{rates.metric} on {rates.eval_set} without the forget adapter, by label recall",
        ["curve", "recall", "condition", "seeds", "value", "low", "high",
         "absorption", "absorption low", "absorption high"], rows,
        "Absorption is known where an arm was trained without the labelled examples; at recall 0 that is the condition "
        "itself, and the number is what ablating unrouted adapters removes.",
    )  # fmt: skip


def with_intervals(table: pd.DataFrame, by: Sequence[str], *, rate: bool = False) -> pd.DataFrame:
    """`seed, value` and the columns `by` → one row a group: `*by, value, low, high`, NaN where there is no interval.

    The interval of a `rate` ends at 0 and 1.
    """
    rows = []
    for key, part in table.groupby(list(by), sort=False):
        values = part.assign(seed=part["seed"].fillna(-1)).set_index("seed")["value"]
        estimate = _rate(values) if rate else _estimate(values)
        assert estimate is not None
        ends = (math.nan if end is None else end for end in (estimate.low, estimate.high))
        rows.append((*key, estimate.value, *ends))
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high"])


def _values(results: pd.DataFrame, metric: str, eval_set: str, condition: str, mode: str) -> "pd.Series[float]":
    rows = results[
        (results["metric"] == metric) & (results["eval_set"] == eval_set)
        & (results["condition"] == condition) & (results["mode"] == mode)
    ]  # fmt: skip
    return pd.Series(rows["value"].to_numpy(float), index=rows["seed"].fillna(-1).astype(int).to_numpy())


def _sum(terms: Sequence[tuple[int, "pd.Series[float]"]]) -> "pd.Series[float]":
    """The signed sum over the seeds that every term has; the base model stands beside each seed."""
    seeds = sorted(set.intersection(*(set(values.index) for _, values in terms if list(values.index) != [-1])))
    totals = [sum(sign * float(values.get(seed, values.get(-1, math.nan))) for sign, values in terms) for seed in seeds]
    return pd.Series(totals, index=seeds, dtype=float)


def _estimate(values: "pd.Series[float]") -> Estimate | None:
    known = values.dropna()
    return None if known.empty else stats.interval(known.to_numpy(np.float64)[:, None], contrast=True)


def _rate(values: "pd.Series[float]") -> Estimate | None:
    """The estimate of a value that lies in [0, 1] in every seed: its interval ends there too."""
    found = _estimate(values)
    return found.as_rate() if found is not None and values.dropna().between(0, 1).all() else found


def _above(estimate: Estimate | None, limit: float) -> bool:
    return estimate is not None and estimate.low is not None and estimate.low > limit


def _below(estimate: Estimate | None, limit: float) -> bool:
    return estimate is not None and estimate.high is not None and estimate.high < limit


def _why_open(estimate: Estimate | None) -> str | None:
    """Why nothing can be decided from an estimate; None where it has an interval."""
    if estimate is None:
        return "a condition that is compared has no finished run with this measurement."
    return f"{estimate.reason}." if estimate.low is None else None


def _all_above_zero(
    claim: str, said: str, parts: Mapping[str, Estimate | None], margin: float, beside: Mapping[str, Estimate | None]
) -> Claim:
    numbers: dict[str, Any] = {name: as_numbers(e) for name, e in {**parts, **beside}.items()} | {"margin": margin}
    shown = f"{said} ({'; '.join(f'{name} {said_of(e)}' for name, e in parts.items())})"
    for name, estimate in parts.items():
        # A loss that is certain speaks, even where another part is open.
        if _below(estimate, margin) and not _above(estimate, 0):
            return Claim(claim, NOT_SUPPORTED, f"{shown}: {name} lies below {margin:g}.", numbers)
    for estimate in parts.values():
        if (because := _why_open(estimate)) is not None:
            return Claim(claim, UNDECIDED, f"{shown}: {because}", numbers)
    if all(_above(e, 0) for e in parts.values()):
        return Claim(claim, SUPPORTED, f"{shown}: every interval lies above 0.", numbers)
    return Claim(claim, UNDECIDED, f"{shown}: an interval decides neither way.", numbers)
