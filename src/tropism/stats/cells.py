"""Scores as cells: one row per seed, one column per prompt, and the mean over samples inside."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from tropism.errors import UsageError


def to_cells(
    scores: pd.DataFrame, seeds: Sequence[Hashable] | None = None, prompts: Sequence[Hashable] | None = None
) -> Float[np.ndarray, "S P"]:
    """Return the mean score of every seed × prompt, float64 `[S, P]`; NaN where a cell has no score.

    `x[s, p] = mean over samples of score`. The mean over samples is taken inside the cell, so a prompt that
    was sampled more often does not count for more.

    Args:
        scores: columns `seed`, `id` and `value`, one row per sample; rows whose value is NaN are unscored.
        seeds: the rows wanted, in order; by default every seed of the table.
        prompts: the columns wanted, in order; by default every prompt of the table.

    Raises:
        UsageError: a column is missing, or the table has no rows.

    Example:
        >>> table = pd.DataFrame({"seed": [0, 0, 1], "id": ["a", "a", "a"], "value": [0.0, 1.0, 1.0]})
        >>> to_cells(table).tolist()
        [[0.5], [1.0]]
    """
    missing = [column for column in ("seed", "id", "value") if column not in scores.columns]
    if missing:
        raise UsageError(f"scores: needs the columns seed, id and value, lacks {', '.join(missing)}")
    if scores.empty:
        raise UsageError("scores: needs at least one row, found an empty table")
    row, of_seeds = _places(scores["seed"], seeds)
    column, of_prompts = _places(scores["id"], prompts)
    values = scores["value"].to_numpy(dtype=np.float64, na_value=np.nan)
    # A prompt whose every sample is unscored keeps its column: it was asked, and has no score.
    known = (row >= 0) & (column >= 0) & ~np.isnan(values)
    place = row[known] * of_prompts + column[known]
    size = of_seeds * of_prompts
    total, count = np.bincount(place, values[known], size), np.bincount(place, minlength=size)
    means: Float[np.ndarray, "S_P"] = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    return means.reshape(of_seeds, of_prompts)


def _places(column: "pd.Series[Any]", wanted: Sequence[Hashable] | None) -> tuple[np.ndarray, int]:
    """Where each row's value stands among those that are wanted, −1 where it is not, and how many are wanted.

    By default all values of the column are wanted, sorted.
    """
    if wanted is None:
        codes, found = pd.factorize(column, sort=True, use_na_sentinel=False)
        return codes, len(found)
    return pd.Index(list(wanted)).get_indexer(pd.Index(column)), len(wanted)


def paired(treated: pd.DataFrame, baseline: pd.DataFrame) -> Float[np.ndarray, "S P"]:
    """Return the cells of `treated − baseline`, paired by seed and prompt over what both have; float64 `[S, P]`.

    A baseline without seeds (the untrained model: every `seed` is missing) is paired by prompt with every seed.

    Raises:
        UsageError: the two share no seed, or no prompt.
    """
    seeds = sorted(treated["seed"].dropna().unique())
    prompts = sorted(set(treated["id"].unique()) & set(baseline["id"].unique()), key=str)
    if not prompts:
        raise UsageError(
            "paired: treated and baseline share no prompt, so nothing can be paired; evaluate both on one set"
        )
    # The untrained model was asked once, whatever seeds the others ran with.
    seedless = baseline["seed"].isna().all()
    if not seedless:
        seeds = sorted(set(seeds) & set(baseline["seed"].dropna().unique()))
    if not seeds:
        raise UsageError(
            "paired: treated and baseline share no seed, so nothing can be paired; run both with one seed list"
        )
    reference = to_cells(baseline.assign(seed=0), prompts=prompts) if seedless else to_cells(baseline, seeds, prompts)
    cells: np.ndarray = to_cells(treated, seeds, prompts) - reference
    return cells
