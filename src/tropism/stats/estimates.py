"""A value with its interval, a paired difference with its p-value, and "kept the task" with a margin."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from jaxtyping import Float
from scipy import special

from tropism.errors import UsageError
from tropism.stats.resampling import bootstrap, decompose
from tropism.stats.significance import exact_interval

FEWEST_SEEDS = 3
"""With fewer seeds there is no interval over seeds: two points do not show how far away a third would lie."""
EXACT = "prompts, exact"
"""What an interval is over where every response scored 0 or 1: the prompts, each counted once; it has no p-value."""

Bounds = tuple[float, float]
"""The least and the largest value that a metric can take: (0, 1) for a rate, (0, ∞) for a loss."""


@dataclass(frozen=True)
class Estimate:
    """A value, its interval where there is one, and what the interval is over."""

    value: float
    low: float | None
    high: float | None
    """None exactly where `low` is."""
    over: str
    """`seeds and prompts`, `seeds`, `prompts` (within the seeds that ran), `responses` (exact), or empty for none."""
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

    def lies_above(self, x: float) -> bool:
        """Whether the whole interval lies above `x`; False without an interval.

        >>> Estimate(0.6, 0.4, 0.8, "seeds", "", 0.01, 5, 1).lies_above(0.1)
        True
        """
        return self.low is not None and self.low > x

    def lies_below(self, x: float) -> bool:
        """Whether the whole interval lies below `x`; False without an interval."""
        return self.high is not None and self.high < x

    def within(self, bounds: Bounds | None) -> "Estimate":
        """Return the same estimate with an interval that ends at the bounds of what the value can be.

        The true value lies between the bounds, so cutting the interval there costs no coverage. None: no bounds.

        >>> str(Estimate(-0.87, -1.06, -0.69, "seeds", "", 0.01, 5, 1).within((-1.0, 1.0)))
        '−0.87 [−1.00, −0.69]'
        """
        if bounds is None or self.low is None or self.high is None:
            return self
        low, high = max(bounds[0], self.low), min(bounds[1], self.high)
        # A value may overstep its bounds by rounding; the interval holds it all the same.
        return replace(self, low=min(self.value, low), high=max(self.value, high))

    def as_dict(self) -> dict[str, float | None]:
        """Return value and interval by name, None where there is no interval: what a claim keeps."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        """Write `+0.61 [+0.40, +0.82]`, or `+0.61 (no interval)`."""
        interval = "(no interval)"
        if self.low is not None and self.high is not None:
            interval = f"[{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.value:+.2f} {interval}".replace("-", "−")


def bounds_of_sum(bounds: Bounds | None, weights: Iterable[float]) -> Bounds | None:
    """Return where `Σ w·x` can lie when every `x` lies within `bounds`; None where these are unknown.

    >>> bounds_of_sum((0.0, 1.0), (1, -1))
    (-1.0, 1.0)
    """
    if bounds is None:
        return None
    low = high = 0.0
    for weight in weights:
        ends = (weight * bounds[0], weight * bounds[1])
        low += min(ends)
        high += max(ends)
    return low, high


def interval(
    cells: Float[np.ndarray, "S P"],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    contrast: bool = False,
) -> Estimate:
    """Return the mean of the cells with an interval over seeds and prompts: `m ± t_ν · sd(bootstrap draws)`.

    ν are Welch and Satterthwaite's degrees of freedom: S−1 where the seeds dominate. A percentile interval of
    the same draws would cover about 83 % with 5 seeds and 70 % with 3, since a handful of seeds cannot reach
    into the tails.

    Args:
        cells: `[S, P]`, NaN where unscored; `[S, 1]` where only a mean per seed is known.
        contrast: the cells are differences of scores; one that is always 0 is then not a rate of nothing.

    Returns:
        An `Estimate`; without an interval, and with the reason, under three seeds or where nothing varies. Where
        nothing varies because every response scored 0 (or 1), the exact binomial interval over prompts is
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
    if _is_rounding(error, parts.value):
        return _without_variation(cells, parts.value, confidence, contrast)
    over = "seeds and prompts" if prompts > 1 else "seeds"
    return _students(parts.value, error, parts.degrees_of_freedom, confidence, over, "", seeds, prompts)


def interval_within_seeds(
    cells: Float[np.ndarray, "S P"], *, confidence: float = 0.95, contrast: bool = False
) -> Estimate:
    """Return the mean of the cells with an interval over prompts alone: it holds for the seeds that ran and no other.

    `m ± t_{P−1} · sd_p(mean over seeds) / √P`.
    """
    parts = decompose(cells)
    seeds, prompts = _counts(cells)
    if prompts < 2:
        reason = "an interval over prompts needs at least 2 prompts"
        return Estimate(parts.value, None, None, "", reason, None, seeds, prompts)
    by_prompt = np.nanmean(cells[:, np.isfinite(cells).any(axis=0)], axis=0)
    error = float(by_prompt.std(ddof=1)) / math.sqrt(prompts)
    if _is_rounding(error, parts.value):
        return _without_variation(cells, parts.value, confidence, contrast)
    reason = f"over prompts within the {seeds} seed{'s' if seeds != 1 else ''} that ran, not over seeds"
    return _students(parts.value, error, prompts - 1, confidence, "prompts", reason, seeds, prompts)


def difference(
    treated: Float[np.ndarray, "S P"],
    baseline: Float[np.ndarray, "S P"],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Return `treated − baseline`, paired by seed and prompt, with the interval of the cells' differences.

    Where every response of both arms scored the same (0 against 1, say), the differences do not vary. The
    interval is then formed from the two exact ones: `[low_t − high_b, high_t − low_b]`, which covers at least
    as often as it says.

    Args:
        treated: `[S, P]`.
        baseline: `[S, P]` with the same seeds and the same prompts in the same order.

    Raises:
        UsageError: the shapes differ.
    """
    if treated.shape != baseline.shape:
        raise UsageError(
            f"difference: both arms need the same seeds and prompts, found {treated.shape} and {baseline.shape}; "
            "build both with the same `seeds` and `prompts`"
        )
    # Paired cell by cell before anything is resampled: a hard prompt or a lucky seed cancels.
    result = interval(treated - baseline, confidence=confidence, resamples=resamples, seed=seed, contrast=True)
    if (result.low is not None and result.over != EXACT) or result.seeds < FEWEST_SEEDS:
        return result
    one = interval(treated, confidence=confidence, resamples=resamples, seed=seed)
    two = interval(baseline, confidence=confidence, resamples=resamples, seed=seed)
    if one.low is None or one.high is None or two.low is None or two.high is None:
        return Estimate(result.value, None, None, "", result.reason, None, result.seeds, result.prompts)
    low, high = one.low - two.high, one.high - two.low
    reason = "every response of an arm scored the same; the interval is formed of the two exact ones, over prompts"
    return Estimate(result.value, low, high, EXACT, reason, None, result.seeds, result.prompts)


class Verdict(StrEnum):
    """What an interval says of "no worse than the baseline by more than the margin"."""

    KEPT = "kept"
    LOST = "lost"
    UNDECIDED = "undecided"


def noninferior(change: Estimate, margin: float, *, higher_is_better: bool = True) -> Verdict:
    """Decide whether the task was kept: the whole interval of the difference lies above `−margin`.

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
    if higher_is_better:
        kept, lost = change.lies_above(-margin), change.lies_below(-margin)
    else:
        kept, lost = change.lies_below(margin), change.lies_above(margin)
    if kept:
        return Verdict.KEPT
    return Verdict.LOST if lost else Verdict.UNDECIDED


def _counts(cells: Float[np.ndarray, "S P"]) -> tuple[int, int]:
    """Count the seeds and the prompts that have a score."""
    known = np.isfinite(cells)
    return int(known.any(axis=1).sum()), int(known.any(axis=0).sum())


def _is_rounding(error: float, value: float) -> bool:
    """Whether a standard error is no more than float64 rounding of values of this size."""
    return error <= 1e-12 * max(1.0, abs(value))


def _students(
    value: float, error: float, freedom: float, confidence: float, over: str, reason: str, seeds: int, prompts: int
) -> Estimate:
    """Form Student's interval `value ± t·error` and its two-sided p-value."""
    # The functions that `scipy.stats.t` calls: it takes a millisecond to be made, and a large report makes thousands.
    reach = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * error
    p = 2.0 * float(special.stdtr(freedom, -abs(value) / error))
    return Estimate(value, value - reach, value + reach, over, reason, p, seeds, prompts)


def _without_variation(cells: Float[np.ndarray, "S P"], value: float, confidence: float, contrast: bool) -> Estimate:
    """Give the exact interval of a rate of nothing or of everything, and none otherwise."""
    seeds, prompts = _counts(cells)
    if not contrast and prompts > 1 and value in (0.0, 1.0):
        # Seeds answer the same prompts, so their answers are no further independent trials.
        low, high = exact_interval(round(value) * prompts, prompts, confidence=confidence)
        reason = "every response scored the same, so nothing varies over seeds; the interval is exact, each prompt counted once"
        return Estimate(value, low, high, EXACT, reason, None, seeds, prompts)
    reason = "nothing varies over seeds or prompts, so no interval can be formed"
    return Estimate(value, None, None, "", reason, None, seeds, prompts)
