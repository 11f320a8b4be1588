"""Permutation p-values, Holm's correction, exact intervals for rates, effect sizes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
from scipy import stats

from tropism.errors import UsageError

_ENUMERATED = 14
"""Up to this many seeds every assignment of signs is counted (2¹⁴); beyond it, signs are drawn."""


@dataclass(frozen=True)
class Permutation:
    """A permutation p-value, and the smallest that this number of seeds could have given."""

    p: float
    smallest: float


def permutation_test(differences: Float[np.ndarray, "S"], *, resamples: int = 10_000, seed: int = 0) -> Permutation:
    """Return the two-sided p-value of paired differences by flipping signs, one sign per seed.

    Under "the guard changes nothing" each seed's difference is as likely as its negative:
    `p = #{signs : |Σ ±d_s| ≥ |Σ d_s|} / 2^S`, exact up to 14 seeds; beyond, `p = (1 + b) / (1 + resamples)`.
    With S seeds it cannot be smaller than `2 / 2^S`: 0.25 with 3 seeds, 0.0625 with 5, and 0.031 with 6.

    Args:
        differences: one mean difference per seed, `[S]`.

    Raises:
        UsageError: there is no difference, or one is not finite.

    Example:
        >>> permutation_test(np.array([1.0, 2.0, 3.0])).p
        0.25
    """
    if differences.size == 0 or not np.isfinite(differences).all():
        raise UsageError(f"differences: need at least one, all finite, found {differences.tolist()}")
    count = differences.size
    # A hair below what was observed, so that the observed assignment counts itself whatever the rounding.
    observed = abs(float(differences.sum())) * (1 - 1e-12)
    if count <= _ENUMERATED:
        signs = np.array(list(product((1.0, -1.0), repeat=count)))  # [2^S, S]
        return Permutation(float(np.mean(np.abs(signs @ differences) >= observed)), 2.0 / 2.0**count)
    # (1 + b) / (1 + K): what was observed is one of the assignments, so that p is never 0.
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(resamples, count))
    beyond = int(np.sum(np.abs(signs @ differences) >= observed))
    return Permutation((1 + beyond) / (1 + resamples), 1.0 / (1 + resamples))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust a family of p-values by Holm's step-down rule; `None` (no test was possible) stays `None`.

    `p̃_(i) = max over j ≤ i of min(1, (m − j + 1) · p_(j))`, with `m` the tests that were possible: the chance
    of one false claim in the family stays below the level.

    Raises:
        UsageError: a p-value lies outside 0..1.

    Example:
        >>> holm([0.01, None, 0.04])
        [0.02, None, 0.04]
    """
    # Sorted with their places, so that each adjusted value finds its way back.
    known = [(p, index) for index, p in enumerate(p_values) if p is not None]
    wrong = [p for p, _ in known if not 0.0 <= p <= 1.0]
    if wrong:
        raise UsageError(f"p_values: must lie between 0 and 1, found {wrong[0]}")
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted(known)):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def exact_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Clopper and Pearson's interval of a rate, which covers at least as often as it says.

    Raises:
        UsageError: `n` is not positive, or `successes` lies outside 0..n.

    Example:
        >>> low, high = exact_interval(0, 100)
        >>> low, round(high, 4)
        (0.0, 0.0362)
    """
    if n <= 0 or not 0 <= successes <= n:
        raise UsageError(f"exact_interval: needs 0 ≤ successes ≤ n and n > 0, found {successes} of {n}")
    tail = (1.0 - confidence) / 2
    # At the edges a quantile of the beta distribution is undefined, and the interval is one-sided there.
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def hedges_g(differences: Float[np.ndarray, "S"]) -> float | None:
    """Return the paired effect size over seeds: `J · mean(d) / sd(d)` with `J = 1 − 3 / (4(S−1) − 1)`.

    J corrects for few seeds. None with fewer than three seeds, or where the differences do not vary and so give
    no scale to measure by.
    """
    if differences.size < 3:
        return None
    spread = float(np.std(differences, ddof=1))
    mean = float(np.mean(differences))
    # Rounding aside, the differences are all the same.
    if spread <= 1e-12 * max(1.0, abs(mean)):
        return None
    return (1.0 - 3.0 / (4.0 * (differences.size - 1) - 1.0)) * mean / spread


def cohens_h(treated: float, baseline: float) -> float:
    """Return the difference of two rates on the scale of constant variance: `2·asin√p₁ − 2·asin√p₂`.

    Raises:
        UsageError: a rate lies outside 0..1.
    """
    for name, rate in (("treated", treated), ("baseline", baseline)):
        if not 0.0 <= rate <= 1.0:
            raise UsageError(f"{name}: a rate lies between 0 and 1, found {rate}")
    return 2.0 * math.asin(math.sqrt(treated)) - 2.0 * math.asin(math.sqrt(baseline))
