"""Simulated studies that stop when they like: how often the interval holds the truth at the look where they stopped."""

from collections.abc import Callable

import numpy as np
from scipy.stats import t

from tropism.stats import Look
from tropism.stats.resampling import decompose

PROMPTS = 48
Draw = Callable[[np.random.Generator, int], np.ndarray]
"""Cells `[seeds, prompts]` of a paired difference."""


def gaussian(effect: float, sd_seed: float, sd_prompt: float) -> Draw:
    """Normal scores."""
    return lambda rng, seeds: (
        effect
        + sd_seed * rng.standard_normal((seeds, 1))
        + sd_prompt * rng.standard_normal((1, PROMPTS))
        + rng.standard_normal((seeds, PROMPTS))
    )


def rates(logit: float, sd_seed: float) -> Draw:
    """Two arms scored 0 or 1 that share prompts; the second has a log-odds of 0.5 plus the seed's."""

    def draw(rng: np.random.Generator, seeds: int) -> np.ndarray:
        prompt = rng.standard_normal((1, PROMPTS))
        arms = [1 / (1 + np.exp(-(x + sd_seed * rng.standard_normal((seeds, 1)) + prompt))) for x in (logit, 0.5)]
        treated, baseline = ((rng.random((seeds, PROMPTS)) < arm) * 1.0 for arm in arms)
        difference: np.ndarray = treated - baseline
        return difference

    return draw


def true_rates(logit: float, sd_seed: float) -> float:
    """The difference that `rates` has on average."""
    z = np.random.default_rng(99).standard_normal((2, 400_000))
    at = sd_seed * z[0] + z[1]
    return float((1 / (1 + np.exp(-(logit + at))) - 1 / (1 + np.exp(-(0.5 + at)))).mean())


def stopping(
    draw: Draw, truth: float, looks: tuple[Look, ...], studies: int, seed: int, naive: bool = False
) -> tuple[float, float]:
    """Return the share of studies whose interval at the look where they stopped holds the truth, and the seeds they took.

    A study stops at the first look whose interval excludes 0, the stopping that misleads most; `naive` takes 95 % each time.
    """
    rng = np.random.default_rng(seed)
    held, taken = 0, 0
    for _ in range(studies):
        cells = draw(rng, looks[-1].seeds)
        for look in looks:
            parts = decompose(cells[: look.seeds])
            alpha = 0.05 if naive else look.alpha
            reach = t.ppf(1 - alpha / 2, parts.degrees_of_freedom) * parts.variance**0.5
            if abs(parts.value) > reach:
                break
        held += abs(parts.value - truth) <= reach
        taken += look.seeds
    return held / studies, taken / studies
