"""Seeds until it is decided: looks at the results while seeds come in, with intervals that keep their coverage.

Who adds seeds until an interval excludes 0 looks several times, and a 95 % interval at every look misses the truth at one
of them far more often than one time in twenty. Here the error of 5 % is spent over the looks, of which there is a fixed
most: at `S` of at most `S_max` seeds all looks so far may have spent

    α(S) = α · (S / S_max)²,        spent at this look: α_S = α(S) − α(S_before),

and the interval of the look has confidence `1 − α_S`. By the union bound an interval at *whatever* look one stops misses
with a probability of at most `Σ α_S = α`, for whatever reason one stopped.

The union bound and not the boundaries of Lan and DeMets, although those are narrower by about a tenth: they need the joint
normal law of the looks, and with three to eight seeds the statistics are Student's with two to seven degrees of freedom. The
union bound needs no more than that each look's own interval covers as often as it says.

Source: error spending (Lan and DeMets, *Biometrika* 1983), with the power family's exponent 2.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from tropism.errors import UsageError
from tropism.stats.estimates import FEWEST_SEEDS

ALPHA = 0.05
EXPONENT = 2.0
"""Under 1 most is spent on the first look, whose few degrees of freedom decide little; over 3 nothing is left for it."""


@dataclass(frozen=True)
class Look:
    """One look at the results: with how many seeds, and the error that its interval may have."""

    seeds: int
    alpha: float

    @property
    def confidence(self) -> float:
        """Of this look's intervals."""
        return 1.0 - self.alpha


def looks(max_seeds: int, *, fewest: int = FEWEST_SEEDS, alpha: float = ALPHA) -> tuple[Look, ...]:
    """Return the looks at `fewest`, `fewest + 1`, … `max_seeds` seeds, whose errors sum to `alpha`.

    Raises `UsageError` for fewer than three seeds at most, or an `alpha` outside (0, 1).

    >>> [round(look.alpha, 4) for look in looks(5)]
    [0.018, 0.014, 0.018]
    """
    if max_seeds < FEWEST_SEEDS:
        raise UsageError(
            f"max_seeds: an interval over seeds needs at least {FEWEST_SEEDS} seeds, found {max_seeds}; give more"
        )
    if not 0.0 < alpha < 1.0:
        raise UsageError(f"alpha: must lie strictly between 0 and 1, found {alpha}; write 0.05 for 5 %")
    found, spent = [], 0.0
    for seeds in range(min(max(fewest, FEWEST_SEEDS), max_seeds), max_seeds + 1):
        may_be_spent = alpha * (seeds / max_seeds) ** EXPONENT
        found.append(Look(seeds, may_be_spent - spent))
        spent = may_be_spent
    return tuple(found)


def adjusted(p: float, look: Look, *, alpha: float = ALPHA) -> float:
    """Return a look's p-value so that it may be held against `alpha`: `min(1, p·α/α_S)`.

    >>> adjusted(0.001, Look(3, 0.01))
    0.005
    """
    return min(1.0, p * alpha / look.alpha)


def power(
    effect: float,
    *,
    seed_sd: float,
    prompts: int,
    noise_sd: float,
    planned: tuple[Look, ...],
    studies: int = 2000,
    seed: int = 0,
) -> float:
    """Return how often a difference of this size is told from 0 at one of the planned looks, by simulation.

    Each study draws differences per seed, `effect + seed_sd·a_s + noise_sd/√prompts·e_s`, and stops at the first look whose
    Student interval excludes 0. Prompts are taken as shared by both arms, so that their own effects cancel.
    """
    spread = float(np.hypot(seed_sd, noise_sd / np.sqrt(prompts)))
    if spread == 0.0:
        return float(effect != 0.0)
    drawn = effect + spread * np.random.default_rng(seed).standard_normal((studies, planned[-1].seeds))
    decided = np.zeros(studies, dtype=bool)
    for look in planned:
        own = drawn[:, : look.seeds]
        reach = stats.t.ppf(1 - look.alpha / 2, look.seeds - 1) * own.std(axis=1, ddof=1) / np.sqrt(look.seeds)
        decided |= np.abs(own.mean(axis=1)) > reach
    return float(decided.mean())


def smallest_effect(
    *,
    seed_sd: float,
    prompts: int,
    noise_sd: float,
    planned: tuple[Look, ...],
    wanted: float = 0.8,
    seed: int = 0,
) -> float | None:
    """Return the smallest difference, in hundredths, that is decided in `wanted` of the studies; None where 1 is not."""
    low, high = 0, 100
    given = {"seed_sd": seed_sd, "prompts": prompts, "noise_sd": noise_sd, "planned": planned, "seed": seed}
    if power(1.0, **given) < wanted:  # type: ignore[arg-type]
        return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = power(middle / 100, **given) >= wanted  # type: ignore[arg-type]
        low, high = (low, middle) if enough else (middle, high)
    return high / 100
