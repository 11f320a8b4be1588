"""The statistics of a validity report: how well two samples are told apart, and what chance would do. No torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def auc(positive: Array, negative: Array) -> Interval:
    """`P(x⁺ > x⁻) + ½·P(x⁺ = x⁻)`, with DeLong's variance (1988) and an interval on the logit scale.

    Where the samples are apart altogether DeLong's variance is 0, which says too much. Then the bound is the exact
    one for `min(n⁺, n⁻)` comparisons without a miss, `0.025^(1/n)`.

    >>> auc(np.array([2.0, 3.0]), np.array([1.0, 2.0])).value
    0.875
    """
    m, n = len(positive), len(negative)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    # Share of the other side that each value beats, ties half: their means are the AUC, their variances DeLong's.
    over = (ranks[:m] - stats.rankdata(positive)) / n
    under = 1 - (ranks[m:] - stats.rankdata(negative)) / m
    value = float(over.mean())
    if min(m, n) < 2:
        return Interval(value, 0.0, 1.0)
    variance = float(over.var(ddof=1) / m + under.var(ddof=1) / n)
    tail = (1 - LEVEL) / 2
    if value in (0.0, 1.0) or variance == 0:
        reach = 1 - tail ** (1 / min(m, n))
        return Interval(value, max(0.0, value - reach), min(1.0, value + reach))
    logit = np.log(value / (1 - value))
    half = stats.norm.ppf(1 - tail) * np.sqrt(variance) / (value * (1 - value))
    low, high = (1 / (1 + np.exp(-(logit + side * half))) for side in (-1, 1))
    return Interval(value, float(low), float(high))


def correlation(x: Array, y: Array) -> Interval | None:
    """Pearson's r with Fisher's interval; None where it has none: under 4 points, or one of them does not vary."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found = stats.pearsonr(x, y)
    interval = found.confidence_interval(LEVEL)
    return Interval(float(found.statistic), float(interval.low), float(interval.high))


def shuffled_norms(positive: Array, negative: Array, paired: bool, shuffles: int, seed: int) -> tuple[float, Array]:
    """`‖mean(x⁺) − mean(x⁻)‖` of coordinates `[n, k]`, and the same for labels that mean nothing, `[shuffles]`.

    Pairs are swapped at random; unpaired labels are permuted.
    """
    source = np.random.default_rng(seed)
    norm = float(np.linalg.norm(positive.mean(0) - negative.mean(0)))
    if paired:
        signs = source.choice([-1.0, 1.0], size=(shuffles, len(positive)))
        return norm, np.linalg.norm(signs @ (positive - negative) / len(positive), axis=1)
    pool, m = np.concatenate([positive, negative]), len(positive)
    null = np.empty(shuffles)
    for index in range(shuffles):
        order = source.permutation(len(pool))
        null[index] = np.linalg.norm(pool[order[:m]].mean(0) - pool[order[m:]].mean(0))
    return norm, null


def p_value(observed: float, null: Array) -> float:
    """`(1 + #{null ≥ observed}) / (1 + K)`."""
    return float((1 + (null >= observed).sum()) / (1 + len(null)))


def histogram(positive: Array, negative: Array, bins: int = 24) -> dict[str, Any]:
    """Counts of both sides on common edges, ready to be drawn."""
    both = np.concatenate([positive, negative])
    edges = np.linspace(both.min(), both.max() if np.ptp(both) > 0 else both.min() + 1, bins + 1)
    return {
        "edges": edges.tolist(),
        "positive": np.histogram(positive, edges)[0].tolist(),
        "negative": np.histogram(negative, edges)[0].tolist(),
    }


def scores_along(positive: Array, negative: Array) -> tuple[Array, Array]:
    """One number a chat from its coordinates `[n, k]`: itself for `k = 1`, else cross-fitted in two halves.

    In a subspace, the axis is the mean difference of one half of the chats, and the other half is scored along it: no
    chat is scored by an axis that it helped to choose.
    """
    if positive.shape[1] == 1:
        return positive[:, 0], negative[:, 0]
    scored = [np.empty(len(side)) for side in (positive, negative)]
    for half in (0, 1):
        axis = positive[1 - half :: 2].mean(0) - negative[1 - half :: 2].mean(0)
        axis = axis / max(float(np.linalg.norm(axis)), 1e-300)
        for side, rows in zip(scored, (positive, negative), strict=True):
            side[half::2] = rows[half::2] @ axis
    return scored[0], scored[1]


def norm_in_largest(vector: Array, count: int) -> tuple[float, list[int]]:
    """Share of `‖v‖²` in its `count` largest dimensions, and which they are."""
    squares = vector**2
    largest = np.argsort(-squares, kind="stable")[:count]
    return float(squares[largest].sum() / squares.sum()), [int(index) for index in largest]
