"""Measurements → one row an arm, evaluation set and metric: value, interval, difference to the baseline,
p-values.

An arm is a condition in an ablation mode. The scores of single responses, where there are any, give intervals
over seeds and prompts, paired by both; otherwise the seeds' means do, and the row says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tropism import stats
from tropism.names import BASE
from tropism.results.folder import check_results
from tropism.stats import Estimate

DEFAULT_MARGIN = 0.05
"""How much of a wanted rate may be lost and still count as kept, where the experiment file names no `margin`.
"""
SUMMARY_COLUMNS = (
    "condition",
    "mode",
    "arm",
    "eval_set",
    "metric",
    "mark",
    "value",
    "low",
    "high",
    "over",
    "reason",
    "difference",
    "difference_low",
    "difference_high",
    "difference_over",
    "difference_reason",
    "p",
    "p_holm",
    "p_permutation",
    "effect_size",
    "kept",
    "seeds",
    "n",
    "unscored",
)


def baseline_name(experiment: dict[str, Any]) -> str:
    """The condition that the others are compared with."""
    return str(experiment.get("baseline", "baseline"))


def measure_of(experiment: dict[str, Any], metric: str) -> dict[str, Any]:
    """What the experiment file says of a metric; a suite's `NAME.part` belongs to the measure NAME."""
    measures = experiment.get("measure") or {}
    found = measures.get(metric) or measures.get(metric.split(".")[0]) or {}
    return found if isinstance(found, dict) else {}


def mark_of(experiment: dict[str, Any], metric: str) -> str:
    """`wanted`, `unwanted`, or empty."""
    measure = measure_of(experiment, metric)
    return "wanted" if measure.get("wanted") else "unwanted" if measure.get("unwanted") else ""


def margin_of(experiment: dict[str, Any], metric: str) -> float:
    """How much of a wanted metric may be lost and still count as kept."""
    margin = measure_of(experiment, metric).get("margin")
    return DEFAULT_MARGIN if margin is None else float(margin)


@dataclass(frozen=True)
class Cells:
    """Where the scores of an arm on one evaluation set and metric come from."""

    table: pd.DataFrame
    """Columns `seed, id, value`: one row a response, or one row a seed (`id` is then the same for all)."""
    per_response: bool


def summary_table(
    results: pd.DataFrame, experiment: dict[str, Any], scores: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One row an arm, evaluation set and metric, in the order of the experiment file; columns
    `SUMMARY_COLUMNS`.

    Args:
        results: the columns of `results.csv`.
        experiment: the resolved experiment file; `measure` marks what is wanted and unwanted, `baseline`
            names the reference. scores: `RunFolder.scores`; without it intervals are over seeds alone.

    Raises:
        RunFolderError: a column is missing or a measurement is there twice.

    Example:
        >>> table = summary_table(results, experiment)
        >>> table.loc[table.metric == "accuracy", ["arm", "value", "low", "high", "difference"]]
    """
    results, _ = check_results(results)
    rows = list(_rows(results, experiment, scores))
    table = pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
    for _, family in table.groupby(["eval_set", "metric"], sort=False):
        others = family[(family["condition"] != BASE) & family["p"].notna()]
        table.loc[others.index, "p_holm"] = stats.holm([float(p) for p in others["p"]])
    return table


def arms(results: pd.DataFrame, experiment: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(condition, mode, label) in the order of the experiment file, the base model first."""
    order = [BASE, *map(str, experiment.get("conditions") or {})]
    order += [name for name in dict.fromkeys(results["condition"]) if name not in order]
    found = []
    for condition in order:
        modes = list(dict.fromkeys(results.loc[results["condition"] == condition, "mode"]))
        plain = [mode for mode in modes if mode in ("", "full")]
        for mode in plain + [mode for mode in modes if mode not in plain]:
            named = (
                condition if mode in plain and len(modes) == 1 else f"{condition} · {mode.replace('_', ' ') or 'full'}"
            )
            found.append((condition, mode, named))
    return found


def _rows(
    results: pd.DataFrame, experiment: dict[str, Any], scores: pd.DataFrame | None
) -> Iterator[tuple[object, ...]]:
    declared = list(experiment.get("measure") or {})
    metrics = sorted(
        dict.fromkeys(results["metric"]),
        key=lambda name: declared.index(name.split(".")[0]) if name.split(".")[0] in declared else len(declared),
    )
    reference = baseline_name(experiment)
    for metric in metrics:
        of_metric = results[results["metric"] == metric]
        for eval_set in dict.fromkeys(of_metric["eval_set"]):
            part = of_metric[of_metric["eval_set"] == eval_set]
            part_scores = None
            if scores is not None:
                part_scores = scores[(scores["metric"] == metric) & (scores["eval_set"] == eval_set)]
            reference_modes = [mode for _, mode, _ in arms(part[part["condition"] == reference], experiment)]
            base_cells = cells_of(part, part_scores, reference, reference_modes[0]) if reference_modes else None
            for condition, mode, label in arms(results, experiment):
                mine = part[(part["condition"] == condition) & (part["mode"] == mode)]
                if not mine.empty:
                    is_reference = condition == reference and mode in reference_modes[:1]
                    cells = cells_of(part, part_scores, condition, mode)
                    against = None if is_reference or condition == BASE else base_cells
                    yield _row(condition, mode, label, eval_set, metric, experiment, mine, cells, against)


def cells_of(part: pd.DataFrame, scores: pd.DataFrame | None, condition: str, mode: str) -> Cells:
    """Scores by response where they reproduce the measurement, else one mean a seed.

    A metric need not be a mean over responses (a perplexity is not): where the two differ, the measurement
    counts.
    """
    means = part[(part["condition"] == condition) & (part["mode"] == mode)]
    if scores is not None:
        mine = scores[(scores["condition"] == condition) & (scores["mode"] == mode)]
        mine = mine[mine["seed"].isin(means["seed"].dropna()) | mine["seed"].isna()]
        scored = mine[mine["value"].notna()]
        by_seed = scored.assign(seed=scored["seed"].fillna(-1)).groupby("seed")["value"].mean()
        expected = means.assign(seed=means["seed"].fillna(-1)).set_index("seed")["value"]
        if len(by_seed) == len(expected) and np.allclose(
            by_seed.reindex(expected.index), expected, rtol=1e-4, atol=1e-6, equal_nan=False
        ):
            return Cells(scored[["seed", "id", "value"]], True)
    return Cells(means[["seed", "value"]].assign(id="mean"), False)


def estimate(cells: Cells) -> Estimate:
    """Over seeds where there are enough of them, else over prompts within the seeds that ran."""
    array = stats.to_cells(cells.table.assign(seed=cells.table["seed"].fillna(-1)))
    return _with_fallback(stats.interval(array), array, contrast=False)


def compare(cells: Cells, baseline: Cells) -> tuple[Estimate, np.ndarray] | None:
    """The paired difference and its mean per seed; None where the two share no seed."""
    if cells.per_response != baseline.per_response:
        cells, baseline = _means(cells), _means(baseline)
    shared = set(cells.table["seed"].dropna()) & set(baseline.table["seed"].dropna())
    prompts = sorted(set(cells.table["id"]) & set(baseline.table["id"]))
    if not shared or not prompts:
        return None
    one, two = (stats.to_cells(arm.table, sorted(shared), prompts) for arm in (cells, baseline))
    by_seed = np.nanmean(one - two, axis=1) if np.isfinite(one - two).any(axis=1).all() else np.array([])
    if not np.isfinite(one - two).any():
        return None
    return _with_fallback(stats.difference(one, two), one - two, contrast=True), by_seed


def _with_fallback(over_seeds: Estimate, array: np.ndarray, contrast: bool) -> Estimate:
    if over_seeds.low is not None or over_seeds.seeds >= 3:
        return over_seeds
    within = stats.interval_within_seeds(array, contrast=contrast)
    return within if within.low is not None else over_seeds


def _means(cells: Cells) -> Cells:
    means = cells.table.groupby("seed", dropna=False)["value"].mean().reset_index()
    return Cells(means.assign(id="mean"), False)


def _row(
    condition: str,
    mode: str,
    label: str,
    eval_set: str,
    metric: str,
    experiment: dict[str, Any],
    mine: pd.DataFrame,
    cells: Cells,
    against: Cells | None,
) -> tuple[object, ...]:
    mark = mark_of(experiment, metric)
    value = estimate(cells)
    if mark and cells.table["value"].between(0.0, 1.0).all():
        value = value.as_rate()
    compared = compare(cells, against) if against is not None else None
    change, by_seed = compared if compared is not None else (None, np.array([]))
    kept = ""
    if change is not None and mark == "wanted":
        kept = str(stats.noninferior(change, margin_of(experiment, metric)))
    return (
        condition,
        mode,
        label,
        eval_set,
        metric,
        mark,
        value.value,
        value.low,
        value.high,
        value.over,
        value.reason,
        *(
            (change.value, change.low, change.high, change.over, change.reason)
            if change
            else (None, None, None, "", "")
        ),
        change.p if change and change.over_seeds else None,
        None,
        stats.permutation_test(by_seed).p if by_seed.size else None,
        stats.hedges_g(by_seed) if by_seed.size else None,
        kept,
        int(mine["seed"].nunique()),
        int(mine["n"].sum()),
        int(mine["unscored"].sum()),
    )
