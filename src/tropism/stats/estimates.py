"""A value with its interval, a paired difference with its p-value, and "kept the task" with a margin."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from jaxtyping import Float
from scipy import stats

from tropism.errors import UsageError
from tropism.stats.resampling import bootstrap, decompose
from tropism.stats.significance import exact_interval

FEWEST_SEEDS = 3
"""Under this many seeds there is no interval over seeds: two points do not show how far a third would lie."""


@dataclass(frozen=True)
class Estimate:
    """A value, its interval where there is one, and what the interval is over."""

    value: float
    low: float | None
    high: float | None
    over: str
    """`seeds and prompts`, `seeds`, `prompts` (within the seeds that were run), `responses` (exact), or
    empty: none.
    """
    reason: str
    """Why there is no interval over seeds; empty where there is one."""
    p: float | None
    """Two-sided p-value of "the value is 0", from the same t distribution as the interval."""
    seeds: int
    prompts: int

    @property
    def over_seeds(self) -> bool:
        """Whether the interval says something about seeds that were not run."""
        return self.low is not None and self.over.startswith("seeds")

    def as_rate(self) -> "Estimate":
        """The same of a value between 0 and 1: its true value lies there, so the interval loses nothing by ending there."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(0.0, self.low), high=min(1.0, self.high))


def _counts(cells: Float[np.ndarray, "S P"]) -> tuple[int, int]:
    known = np.isfinite(cells)
    return int(known.any(axis=1).sum()), int(known.any(axis=0).sum())


def interval(
    cells: Float[np.ndarray, "S P"],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    contrast: bool = False,
) -> Estimate:
    """The mean of the cells with an interval over seeds and prompts: `m ± t_ν · sd(bootstrap draws)`.

    ν are Welch and Satterthwaite's degrees of freedom: S−1 where the seeds dominate. A percentile interval of
    the same draws would cover about 83 % with 5 seeds and 70 % with 3, since a handful of seeds cannot reach
    into the tails.

    Args:
        cells: `[S, P]`, NaN where unscored; `[S, 1]` where only a mean per seed is known.
        contrast: the cells are differences of scores: one that is always 0 is then no rate of nothing.

    Returns:
        An `Estimate`; without interval, and with the reason, under three seeds or where nothing varies. Where
        nothing varies because every response scored 0 (or 1), the exact binomial interval over responses is
        given instead.

    Raises:
        UsageError: no cell is scored, or `confidence` is not between 0 and 1.

    Example:
        >>> interval(np.array([[0.1], [0.2]])).reason
        'an interval over seeds needs at least 3 seeds, found 2'
    """
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"confidence: must lie strictly between 0 and 1, found {confidence}; write 0.95 for 95 %")
    parts = decompose(cells)
    seeds, prompts = _counts(cells)
    if seeds < FEWEST_SEEDS:
        reason = f"an interval over seeds needs at least {FEWEST_SEEDS} seeds, found {seeds}"
        return Estimate(parts.value, None, None, "", reason, None, seeds, prompts)
    error = float(bootstrap(cells, resamples=resamples, seed=seed).std())
    if error <= 1e-12 * max(1.0, abs(parts.value)):
        return _without_variation(cells, parts.value, confidence, contrast)
    t = stats.t(parts.degrees_of_freedom)
    reach = float(t.ppf(0.5 + confidence / 2)) * error
    p = 2.0 * float(t.sf(abs(parts.value) / error))
    over = "seeds and prompts" if prompts > 1 else "seeds"
    return Estimate(parts.value, parts.value - reach, parts.value + reach, over, "", p, seeds, prompts)


def _without_variation(cells: Float[np.ndarray, "S P"], value: float, confidence: float, contrast: bool) -> Estimate:
    seeds, prompts = _counts(cells)
    if not contrast and prompts > 1 and value in (0.0, 1.0):
        count = int(np.isfinite(cells).sum())
        low, high = exact_interval(round(value) * count, count, confidence=confidence)
        reason = "every response scored the same, so nothing varies over seeds; the interval is exact, over responses"
        return Estimate(value, low, high, "responses", reason, None, seeds, prompts)
    reason = "nothing varies over seeds or prompts, so no interval can be formed"
    return Estimate(value, None, None, "", reason, None, seeds, prompts)


def interval_within_seeds(
    cells: Float[np.ndarray, "S P"], *, confidence: float = 0.95, contrast: bool = False
) -> Estimate:
    """The mean of the cells with an interval over prompts alone: it holds for the seeds that were run, and
    for no other.

    `m ± t_{P−1} · sd_p(mean over seeds) / √P`.
    """
    parts = decompose(cells)
    seeds, prompts = _counts(cells)
    reason = f"over prompts within the {seeds} seed{'s' if seeds != 1 else ''} that ran, not over seeds"
    if prompts < 2:
        return Estimate(
            parts.value,
            None,
            None,
            "",
            "an interval over prompts needs at least 2 prompts",
            None,
            seeds,
            prompts,
        )
    column = np.nanmean(cells[:, np.isfinite(cells).any(axis=0)], axis=0)
    error = float(column.std(ddof=1)) / math.sqrt(prompts)
    if error <= 1e-12 * max(1.0, abs(parts.value)):
        return _without_variation(cells, parts.value, confidence, contrast)
    t = stats.t(prompts - 1)
    reach = float(t.ppf(0.5 + confidence / 2)) * error
    p = 2.0 * float(t.sf(abs(parts.value) / error))
    return Estimate(parts.value, parts.value - reach, parts.value + reach, "prompts", reason, p, seeds, prompts)


def difference(
    treated: Float[np.ndarray, "S P"],
    baseline: Float[np.ndarray, "S P"],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """`treated − baseline`, paired by seed and by prompt: the interval of the cells' differences.

    Where every response of both arms scored the same (0 against 1, say), the differences do not vary; the
    interval is then formed of the two exact ones: `[low_t − high_b, high_t − low_b]`, which covers at least
    as often as it says.

    Args:
        treated: `[S, P]`.
        baseline: `[S, P]` with the same seeds and the same prompts in the same order.

    Raises:
        UsageError: the shapes differ.
    """
    if treated.shape != baseline.shape:
        raise UsageError(
            f"difference: both arms need the same seeds and prompts, found {treated.shape} and "
            f"{baseline.shape}; "
            "build both with the same `seeds` and `prompts`"
        )
    result = interval(treated - baseline, confidence=confidence, resamples=resamples, seed=seed, contrast=True)
    if (result.low is not None and result.over != "responses") or result.seeds < FEWEST_SEEDS:
        return result
    one, two = (interval(arm, confidence=confidence, resamples=resamples, seed=seed) for arm in (treated, baseline))
    if one.low is None or one.high is None or two.low is None or two.high is None:
        return Estimate(result.value, None, None, "", result.reason, None, result.seeds, result.prompts)
    low, high = one.low - two.high, one.high - two.low
    reason = "every response of an arm scored the same; the interval is formed of the two exact ones, over responses"
    return Estimate(result.value, low, high, "responses", reason, None, result.seeds, result.prompts)


class Verdict(StrEnum):
    """What an interval says of "no worse than the baseline by more than the margin"."""

    KEPT = "kept"
    LOST = "lost"
    UNDECIDED = "undecided"


def noninferior(change: Estimate, margin: float, *, higher_is_better: bool = True) -> Verdict:
    """Whether the task was kept: the whole interval of the difference lies above `−margin`.

    `kept` if `low > −margin`, `lost` if `high < −margin`, else `undecided`; also undecided without an
    interval. With a 95 % interval this is the one-sided test at 2.5 %. For a metric where lower is better,
    the signs are turned.

    Raises:
        UsageError: the margin is negative or not finite. Choose it before looking at the results.
    """
    if not (math.isfinite(margin) and margin >= 0.0):
        raise UsageError(
            f"margin: must be 0 or a positive number, found {margin}; write how large a loss would not matter, "
            f"like 0.05"
        )
    if change.low is None or change.high is None:
        return Verdict.UNDECIDED
    low, high = (change.low, change.high) if higher_is_better else (-change.high, -change.low)
    if low > -margin:
        return Verdict.KEPT
    return Verdict.LOST if high < -margin else Verdict.UNDECIDED
