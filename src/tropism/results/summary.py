"""Measurements → one row per arm, evaluation set and metric: value, interval, difference to the baseline, p-values.

An arm is a condition in an ablation mode. Where there are scores of single responses, they give intervals over
seeds and prompts, paired by both; otherwise the seeds' means do, and the row says so.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from tropism import stats
from tropism.names import BASE
from tropism.results.folder import check_results
from tropism.stats import Bounds, Estimate, Look
from tropism.stats.estimates import FEWEST_SEEDS
from tropism.stats.sequential import adjusted

DEFAULT_MARGIN = 0.05
"""How much of a wanted rate may be lost and still count as kept, where the experiment file names no `margin`."""

RATE: Bounds = (0.0, 1.0)


@dataclass(frozen=True)
class SummaryRow:
    """One arm on one metric and evaluation set."""

    condition: str
    mode: str
    arm: str
    """The condition, with its mode where it has several."""
    eval_set: str
    metric: str
    mark: str
    """`wanted`, `unwanted` or empty, as the experiment file says."""
    value: float
    low: float | None
    high: float | None
    over: str
    reason: str
    """`over` and `reason` of the value's `Estimate`."""
    difference: float | None
    """To the baseline, paired by seed and prompt; None where there is nothing to compare with."""
    difference_low: float | None
    difference_high: float | None
    difference_over: str
    difference_reason: str
    p: float | None
    """Of "the difference is 0", where its interval is over seeds."""
    p_holm: float | None
    """`p` adjusted over the conditions that share the metric and evaluation set."""
    p_permutation: float | None
    effect_size: float | None
    kept: str
    """For a wanted metric `kept`, `lost` or `undecided`; otherwise empty."""
    seeds: int
    n: int
    unscored: int


SUMMARY_COLUMNS = tuple(field.name for field in fields(SummaryRow))


def baseline_name(experiment: Mapping[str, Any]) -> str:
    """Return the condition that the others are compared with."""
    return str(experiment.get("baseline", "baseline"))


def measure_of(experiment: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return what the experiment file says of a metric; empty for one that an analysis measured."""
    found = (experiment.get("measure") or {}).get(metric)
    return found if isinstance(found, dict) else {}


def mark_of(experiment: Mapping[str, Any], metric: str) -> str:
    """Return `wanted`, `unwanted`, or an empty text."""
    measure = measure_of(experiment, metric)
    return "wanted" if measure.get("wanted") else "unwanted" if measure.get("unwanted") else ""


def margin_of(experiment: Mapping[str, Any], metric: str) -> float:
    """Return how much of a wanted metric may be lost and still count as kept."""
    margin = measure_of(experiment, metric).get("margin")
    return DEFAULT_MARGIN if margin is None else float(margin)


@dataclass(frozen=True)
class Cells:
    """Where the scores of an arm on one evaluation set and metric come from."""

    table: pd.DataFrame
    """Columns `seed, id, value`: one row per response, or one row per seed (with the same `id` for all)."""
    per_response: bool


def summary_table(
    results: pd.DataFrame,
    experiment: dict[str, Any],
    scores: pd.DataFrame | None = None,
    look: Look | None = None,
) -> pd.DataFrame:
    """Return one row per arm, evaluation set and metric, in the order of the experiment file.

    The columns are the fields of `SummaryRow`.

    Args:
        results: the columns of `results.csv`, and what else `ExperimentFolder.results` knows of a measurement.
        experiment: the resolved experiment file; `measure` marks what is wanted and unwanted, `baseline`
            names the reference.
        scores: `ExperimentFolder.scores`; without it intervals are over seeds alone.
        look: `ExperimentFolder.look`, where seeds were added until it was decided: intervals have that look's confidence,
            and p-values are adjusted for all looks.

    Raises:
        RunFolderError: a column is missing or a measurement is there twice.

    Example:
        >>> table = summary_table(results, experiment)  # doctest: +SKIP
        >>> table.loc[table.metric == "accuracy", ["arm", "value", "low", "high", "difference"]]  # doctest: +SKIP
    """
    results, _ = check_results(results)
    rows = [astuple(row) for row in _rows(results, experiment, scores, look)]
    table = pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
    for _, family in table.groupby(["eval_set", "metric"], sort=False):
        # The untrained model answers no question about a guard, so its comparison costs the others no power.
        others = family[(family["condition"] != BASE) & family["p"].notna()]
        table.loc[others.index, "p_holm"] = stats.holm([float(p) for p in others["p"]])
    return table


def arms(results: pd.DataFrame, experiment: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (condition, mode, label) in the order of the experiment file, the base model first."""
    order = [BASE, *map(str, experiment.get("conditions") or {})]
    order += [name for name in dict.fromkeys(results["condition"]) if name not in order]
    found = []
    for condition in order:
        modes = list(dict.fromkeys(results.loc[results["condition"] == condition, "mode"]))
        whole = [mode for mode in modes if mode in ("", "full")]
        for mode in whole + [mode for mode in modes if mode not in whole]:
            label = condition
            if mode not in whole or len(modes) > 1:
                label = f"{condition} · {mode.replace('_', ' ') or 'full'}"
            found.append((condition, mode, label))
    return found


def cells_of(part: pd.DataFrame, scores: pd.DataFrame | None, condition: str, mode: str) -> Cells:
    """Return an arm's scores by response where the measurement is their mean, else one mean per seed.

    A metric need not be a mean over responses (a perplexity of a whole set is not).
    """
    means = part[(part["condition"] == condition) & (part["mode"] == mode)]
    if scores is not None:
        mine = scores[(scores["condition"] == condition) & (scores["mode"] == mode)]
        # A seed whose measurement was left out, because it is not finite, brings no scores either.
        mine = mine[mine["seed"].isin(means["seed"].dropna()) | mine["seed"].isna()]
        scored = mine[mine["value"].notna()]
        if _is_their_mean(means, scored):
            return Cells(scored[["seed", "id", "value"]], True)
    return Cells(means[["seed", "value"]].assign(id="mean"), False)


def _is_their_mean(means: pd.DataFrame, scored: pd.DataFrame) -> bool:
    if set(scored["seed"].fillna(-1).unique()) != set(means["seed"].fillna(-1)):
        return False
    if "per_response" in means.columns and means["per_response"].notna().all():
        return bool(means["per_response"].all())
    by_seed = scored.assign(seed=scored["seed"].fillna(-1)).groupby("seed")["value"].mean()
    expected = means.assign(seed=means["seed"].fillna(-1)).set_index("seed")["value"]
    # Folders from before `per_response` was recorded, and tables made by hand, do not say. There the scores count
    # where they reproduce the measurement.
    return np.allclose(by_seed.reindex(expected.index), expected, rtol=1e-4, atol=1e-6, equal_nan=False)


def bounds_of(part: pd.DataFrame, mark: str, *cells: Cells) -> Bounds | None:
    """Return the least and the largest value that a metric can take; None where it has no bounds.

    Args:
        part: the rows of one metric and evaluation set.
        mark: `wanted`, `unwanted` or empty.
        cells: the scores that are asked about.
    """
    known, bounds = _recorded_bounds(part)
    return bounds if known else _bounds_seen(mark, *cells)


def _recorded_bounds(part: pd.DataFrame) -> tuple[bool, Bounds | None]:
    """Whether it was recorded which values a metric can take, and which; None is recorded where a scorer knows none."""
    if not {"lowest", "highest"} <= set(part.columns):
        return False, None
    recorded = part[["lowest", "highest"]].dropna()
    if not recorded.empty:
        return True, (float(recorded["lowest"].min()), float(recorded["highest"].max()))
    return "per_response" in part.columns and bool(part["per_response"].notna().any()), None


def _bounds_seen(mark: str, *cells: Cells) -> Bounds | None:
    """In folders from before bounds were recorded, a marked metric whose scores all lie in [0, 1] is taken for a rate."""
    inside = all(one.table["value"].between(*RATE).all() for one in cells)
    return RATE if mark and inside else None


ONE_RUN = "one run without seeds: over its prompts, and another training of it is not spoken of"
"""Why an interval of what was not trained here is over prompts alone."""


def estimate(cells: Cells, confidence: float = 0.95) -> Estimate:
    """Return the mean with its interval over seeds, or over prompts within the runs where seeds are too few or none."""
    # Without a seed there is one run; any number stands for its one row of cells.
    array = stats.to_cells(cells.table.assign(seed=cells.table["seed"].fillna(-1)))
    found = _or_within_seeds(stats.interval(array, confidence=confidence), array, contrast=False)
    return _of_one_run(found) if _seedless(cells) else found


def compare(cells: Cells, baseline: Cells, confidence: float = 0.95) -> tuple[Estimate, np.ndarray] | None:
    """Return the paired difference and its mean per seed; None where the two share no seed or no prompt.

    What has no seeds is one run. As the baseline it is paired by prompt with every seed of the other. Compared itself, it
    is paired with every seed of the baseline, and the interval is over prompts alone: with one run of it, seeds of the
    baseline would tell of half of the difference only.
    """
    # Single responses pair with single responses; where one arm has only means, both are reduced to them.
    if cells.per_response != baseline.per_response:
        cells, baseline = _means(cells), _means(baseline)
    prompts = sorted(set(cells.table["id"].unique()) & set(baseline.table["id"].unique()))
    alone, fixed = _seedless(cells), _seedless(baseline)
    if alone or fixed:
        held = baseline if alone else cells
        seeds = [-1] if alone and fixed else sorted(held.table["seed"].dropna().unique())
    else:
        seeds = sorted(set(cells.table["seed"].dropna().unique()) & set(baseline.table["seed"].dropna().unique()))
    if not seeds or not prompts:
        return None
    one, two = _cells(cells, seeds, prompts), _cells(baseline, seeds, prompts)
    known = np.isfinite(one - two)
    if not known.any():
        return None
    if alone:
        return _of_one_run(stats.interval_within_seeds(one - two, confidence=confidence, contrast=True)), np.array([])
    # A test that flips signs by seed needs a difference in every seed.
    by_seed = np.nanmean(one - two, axis=1) if known.any(axis=1).all() else np.array([])
    change = stats.difference(one, two, confidence=confidence)
    return _or_within_seeds(change, one - two, contrast=True), by_seed


def _seedless(cells: Cells) -> bool:
    return bool(cells.table["seed"].isna().all())


def _cells(cells: Cells, seeds: list[int], prompts: list[str]) -> np.ndarray:
    """Return `[S, P]`; one run without a seed is the same in every row."""
    if not _seedless(cells):
        return stats.to_cells(cells.table, seeds, prompts)
    row = stats.to_cells(cells.table.assign(seed=0), prompts=prompts)
    return np.repeat(row, len(seeds), axis=0)


def _of_one_run(found: Estimate) -> Estimate:
    """The same estimate, which says that it is of one run, where its interval is over prompts."""
    return replace(found, reason=ONE_RUN, p=None, seeds=0) if found.over == "prompts" else found


def _or_within_seeds(over_seeds: Estimate, array: np.ndarray, contrast: bool) -> Estimate:
    if over_seeds.low is not None or over_seeds.seeds >= FEWEST_SEEDS:
        return over_seeds
    within = stats.interval_within_seeds(array, contrast=contrast)
    return within if within.low is not None else over_seeds


def _p(p: float | None, look: Look | None) -> float | None:
    """A p-value, adjusted for the looks that were taken where there were several."""
    return p if p is None or look is None else adjusted(p, look)


def _means(cells: Cells) -> Cells:
    means = cells.table.groupby("seed", dropna=False)["value"].mean().reset_index()
    return Cells(means.assign(id="mean"), False)


def _rows(
    results: pd.DataFrame, experiment: dict[str, Any], scores: pd.DataFrame | None, look: Look | None
) -> Iterator[SummaryRow]:
    declared = list(experiment.get("measure") or {})
    found = dict.fromkeys(results["metric"])
    metrics = [name for name in declared if name in found] + [name for name in found if name not in declared]
    for metric in metrics:
        of_metric = results[results["metric"] == metric]
        for eval_set in dict.fromkeys(of_metric["eval_set"]):
            part = of_metric[of_metric["eval_set"] == eval_set]
            part_scores = None
            if scores is not None:
                part_scores = scores[(scores["metric"] == metric) & (scores["eval_set"] == eval_set)]
            yield from _column(part, part_scores, metric, eval_set, results, experiment, look)


def _by_arm(scores: pd.DataFrame | None) -> Callable[[str, str], pd.DataFrame | None]:
    """Return what gives the scores of one arm: cut apart once, since to search all of them for each arm takes long."""
    if scores is None:
        return lambda condition, mode: None
    parts = dict(iter(scores.groupby(["condition", "mode"], sort=False)))
    return lambda condition, mode: parts.get((condition, mode), scores.iloc[:0])


def _column(
    part: pd.DataFrame,
    scores: pd.DataFrame | None,
    metric: str,
    eval_set: str,
    results: pd.DataFrame,
    experiment: dict[str, Any],
    look: Look | None,
) -> Iterator[SummaryRow]:
    """The rows of one metric and evaluation set, `part` of the results: every arm against the baseline."""
    reference = baseline_name(experiment)
    confidence = 0.95 if look is None else look.confidence
    # A baseline with two adapters is compared with as it was trained: in its first mode, which is `full`.
    modes = [mode for _, mode, _ in arms(part[part["condition"] == reference], experiment)]
    by_arm = _by_arm(scores)
    known, recorded = _recorded_bounds(part)
    baseline = cells_of(part, by_arm(reference, modes[0]), reference, modes[0]) if modes else None
    for condition, mode, label in arms(results, experiment):
        mine = part[(part["condition"] == condition) & (part["mode"] == mode)]
        if mine.empty:
            continue
        is_baseline = condition == reference and mode in modes[:1]
        against = None if is_baseline or condition == BASE else baseline
        cells = cells_of(part, by_arm(condition, mode), condition, mode)
        mark = mark_of(experiment, metric)
        value = estimate(cells, confidence).within(recorded if known else _bounds_seen(mark, cells))
        change, by_seed = None, np.array([])
        if against is not None and (compared := compare(cells, against, confidence)) is not None:
            change, by_seed = compared
            bounds = recorded if known else _bounds_seen(mark, cells, against)
            change = change.within(stats.bounds_of_sum(bounds, (1, -1)))
        kept = ""
        if change is not None and mark == "wanted":
            kept = str(stats.noninferior(change, margin_of(experiment, metric)))
        yield SummaryRow(
            condition=condition,
            mode=mode,
            arm=label,
            eval_set=eval_set,
            metric=metric,
            mark=mark,
            value=value.value,
            low=value.low,
            high=value.high,
            over=value.over,
            reason=value.reason,
            difference=change.value if change else None,
            difference_low=change.low if change else None,
            difference_high=change.high if change else None,
            difference_over=change.over if change else "",
            difference_reason=change.reason if change else "",
            p=_p(change.p if change and change.over_seeds else None, look),
            p_holm=None,
            p_permutation=_p(stats.permutation_test(by_seed).p if by_seed.size else None, look),
            effect_size=stats.hedges_g(by_seed) if by_seed.size else None,
            kept=kept,
            seeds=int(mine["seed"].nunique()),
            n=int(mine["n"].sum()),
            unscored=int(mine["unscored"].sum()),
        )
