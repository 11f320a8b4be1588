"""What the measures say of one trait, each beside its null: numbers only, no model."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

HALF = 0.5
"""A score past the middle counts as showing the trait."""
LEAST_SHARE, SPREADS = 0.15, 3.5
"""A row stands out where it lies further than the data's own median by 3.5 of its robust standard deviations, and by 0.15 of
the trait's length. In another domain than the trait's own pairs, rows with a trait lay at 0.35 to 0.65 of it, not at 1."""
DRAWS = 400


@dataclass(frozen=True)
class Projected:
    """Tier 1. `dose` is the mean of `z` over rows: 0 as the model itself answers, 1 as the trait's own examples."""

    dose: float
    dose_low: float
    dose_high: float
    spreads: float
    """The dose in robust standard deviations of the model's own answers."""
    tail: float
    """Of rows that stand out from the data's own median: a few planted rows show here, not in the mean."""
    p_dose: float
    p_tail: float

    @property
    def p(self) -> float:
        """Of either, Bonferroni over the two."""
        return min(1.0, 2 * min(self.p_dose, self.p_tail))


@dataclass(frozen=True)
class Pulled:
    """Tier 2: the cosine of the data's mean gradient with the trait's, in units of its null."""

    cosine: float
    z: float
    """The cosine less the null's mean, over the null's standard deviation."""
    p: float
    by_row: float = 0.0
    """The mean over rows of each row's own cosine."""


@dataclass(frozen=True)
class Rated:
    """Tier 0: how often the trait's scorer finds it in the rows, and in the model's own answers to the same prompts."""

    rows: float
    own: float
    p: float
    """One-sided, of "the rows show it no more often": Fisher's exact test on the counts past one half."""

    @property
    def excess(self) -> float:
        """How much more often the rows show it."""
        return self.rows - self.own


def rated(rows: np.ndarray, own: np.ndarray) -> Rated | None:
    """From scores in 0..1, unscored ones left out; None where a side has none."""
    if not len(rows) or not len(own):
        return None
    one, two = int((rows > HALF).sum()), int((own > HALF).sum())
    table = [[one, len(rows) - one], [two, len(own) - two]]
    p = float(stats.fisher_exact(table, alternative="greater").pvalue)
    return Rated(float(rows.mean()), float(own.mean()), p)


def projected(
    z: np.ndarray,
    z_own: np.ndarray,
    null_dose: np.ndarray,
    null_tail: np.ndarray,
    *,
    tail: float | None = None,
    seed: int,
    resamples: int = 2000,
) -> Projected:
    """From rows `z [n]`, own answers `z_own [m]` and random directions `null_… [draws, n]`, one set for each question.

    `tail` is the share of rows that stand out where gradients were read too; its p-value is that of the projections alone.

    The interval of the dose resamples rows and own answers both: the model's own answers as the data would have a dose
    of 0 within it.
    """
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(z), size=(resamples, len(z)))
    mine = rng.integers(len(z_own), size=(resamples, len(z_own)))
    doses = z[rows].mean(axis=1) - z_own[mine].mean(axis=1)
    low, high = np.quantile(doses, [0.025, 0.975])
    alone = float(standing_out(z).mean())
    tails = standing_out(null_tail).mean(axis=1)
    dose = float(z.mean())
    spreads = dose / max(float(robust_spread(z_own)[0]), 1e-9)
    p_dose, p_tail = _p(dose, null_dose.mean(axis=1)), _p(alone, tails)
    return Projected(dose, float(low), float(high), spreads, alone if tail is None else tail, p_dose, p_tail)


def robust_spread(z: np.ndarray) -> np.ndarray:
    """`1.4826 · median |z − median|` along the last axis: a normal sample's standard deviation, whatever a minority does."""
    middle = np.median(z, axis=-1, keepdims=True)
    found: np.ndarray = 1.4826 * np.median(np.abs(z - middle), axis=-1, keepdims=True)
    return found


def standing_out(z: np.ndarray) -> np.ndarray:
    """Which of the rows `[..., n]` lie further than the data's own median by `LEAST_SHARE` and by `SPREADS` of its spreads."""
    beyond = np.maximum(LEAST_SHARE, SPREADS * robust_spread(z))
    far: np.ndarray = z - np.median(z, axis=-1, keepdims=True) > beyond
    return far


def standing_out_together(z: np.ndarray, pulls: np.ndarray) -> np.ndarray:
    """Which of the rows `[n]` stand out in projection and gradient taken together: their sum over √2, in spreads."""
    together = (in_spreads(z, np.inf) + in_spreads(pulls, np.inf)) / np.sqrt(2)
    far: np.ndarray = (together > SPREADS) & (z - np.median(z) > LEAST_SHARE)
    return far


def in_spreads(x: np.ndarray, most: float = 10.0) -> np.ndarray:
    """Rows `[n]` about their median in robust standard deviations, at most `most` either way."""
    spread = float(robust_spread(x)[0])
    found: np.ndarray = np.clip((x - np.median(x)) / spread, -most, most) if spread > 0 else np.zeros_like(x)
    return found


def pulled(cosine: float, null: np.ndarray, by_row: float = 0.0) -> Pulled:
    """From the cosine, those of the null, and the mean of the rows' own."""
    spread = float(null.std())
    return Pulled(cosine, (cosine - float(null.mean())) / spread if spread > 0 else 0.0, _p(cosine, null), by_row)


def _p(value: float, null: np.ndarray) -> float:
    """One-sided `(1 + #{null ≥ value}) / (1 + draws)`."""
    return float((1 + (null >= value).sum()) / (1 + len(null)))


def as_dict(one: Projected | Pulled | Rated | None) -> dict[str, Any] | None:
    """For JSON."""
    return None if one is None else {name: round(value, 5) for name, value in asdict(one).items()}
