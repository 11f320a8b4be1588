"""Drift: how much of the trait training added, by condition and seed, and whether pressure foretold it."""

import math

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from tropism import stats
from tropism.errors import UsageError
from tropism.stats import Bounds
from tropism.stats.estimates import FEWEST_SEEDS


def check_runs(runs: pd.DataFrame) -> None:
    """Raise where a column is missing, a run is there twice, or a drift is not a finite number."""
    missing = [column for column in ("condition", "seed", "drift") if column not in runs.columns]
    if missing:
        raise UsageError(f"runs: needs the columns condition, seed and drift; lacks {', '.join(missing)}")
    twice = runs[runs.duplicated(["condition", "seed"])]
    if len(twice):
        raise UsageError(
            f"runs: {twice['condition'].iloc[0]!r} has seed {twice['seed'].iloc[0]} twice; give one row per run"
        )
    unscored = runs[~np.isfinite(runs["drift"].astype(float))]
    if len(unscored):
        first = unscored.iloc[0]
        raise UsageError(f"runs: the drift of {first['condition']!r}, seed {first['seed']}, is not a finite number")


def shared_seeds(runs: pd.DataFrame, treated: str, baseline: str) -> list[int]:
    """Return the seeds that both conditions ran with."""
    sides = [set(runs.loc[runs["condition"] == name, "seed"]) for name in (treated, baseline)]
    return sorted(sides[0] & sides[1])


def drift_difference(
    runs: pd.DataFrame, treated: str, baseline: str, column: str = "drift", bounds: Bounds | None = None
) -> pd.DataFrame:
    """Return `treated − baseline` of drift, paired by seed, with an interval over seeds; one row.

    Columns: `contrast, metric, seeds, value, low, high, p, reason`. With fewer than 3 shared seeds there is no interval,
    and `reason` says so. Where all seeds differ by one and the same amount, the interval is that point.

    `bounds` are those of the metric whose change is the drift: both drifts start from the same model, so that their
    difference is one of two values of the metric.
    """
    contrast = f"{treated} − {baseline}"
    seeds = shared_seeds(runs, treated, baseline)
    names = ["contrast", "metric", "seeds", "value", "low", "high", "p", "reason"]
    if not seeds:
        empty = [contrast, column, 0, *[math.nan] * 4, "the two conditions share no seed"]
        return pd.DataFrame([empty], columns=names)
    wide = runs.pivot(index="seed", columns="condition", values=column).loc[seeds]
    cells = (wide[treated] - wide[baseline]).to_numpy(dtype=np.float64)[:, None]
    found = stats.interval(cells).within(stats.bounds_of_sum(bounds, (1, -1)))
    low, high = found.low, found.high
    # No spread between the seeds is the opposite of not knowing.
    if found.seeds >= FEWEST_SEEDS and low is None:
        low = high = found.value
    row = [contrast, column, found.seeds, found.value, low, high, found.p, found.reason]
    return pd.DataFrame([row], columns=names).astype({"low": float, "high": float, "p": float})


def correlation(runs: pd.DataFrame, column: str = "drift") -> pd.DataFrame:
    """Return Pearson's (with Fisher's interval) and Spearman's correlation of `pressure` with drift over runs.

    Columns: `metric, method, runs, r, low, high, p`; missing with fewer than 4 runs, or where nothing varies. Runs of one
    condition are not independent where pressure was measured once per condition: the interval is then too narrow.
    """
    x, y = runs["pressure"].to_numpy(dtype=float), runs[column].to_numpy(dtype=float)
    rows = []
    flat = len(runs) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0
    for method in ("pearson", "spearman"):
        if flat:
            rows.append((column, method, len(runs), math.nan, math.nan, math.nan, math.nan))
            continue
        found = scipy_stats.pearsonr(x, y) if method == "pearson" else scipy_stats.spearmanr(x, y)
        low, high = found.confidence_interval(0.95) if method == "pearson" else (math.nan, math.nan)
        rows.append((column, method, len(runs), float(found.statistic), float(low), float(high), float(found.pvalue)))
    return pd.DataFrame(rows, columns=["metric", "method", "runs", "r", "low", "high", "p"])
