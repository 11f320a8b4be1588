"""The hierarchical bootstrap, seed → prompt → sample, without counting any noise twice.

Three levels vary at once: which seeds were drawn, which prompts were asked, which samples the model gave. The
same prompts are asked of every seed, so seeds and prompts are crossed. Naively resampling every level counts
the noise of a single cell once per level (up to three times) and shrinks the seeds' variance by (S−1)/S.
Here:

- S−1 of the S seeds are drawn, with replacement (Rao and Wu, JASA 1988), which makes the variance of the mean
  unbiased for any number of seeds. A seed brings its own prompts and samples along, so their noise is counted
  here, once.
- P−1 of the P prompts are drawn. Their effects are first shrunk to the variance that prompts have beyond that
  noise (the reflated random effects of Carpenter, Goldstein and Rasbash, 2003).

The weights depend on the random seed alone, so all conditions of one shape are resampled together.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from tropism.errors import UsageError


@dataclass(frozen=True)
class Components:
    """The parts of `cells = value + seeds[:, None] + prompts[None, :] + noise`, and the variance of the mean."""

    value: float
    seeds: Float[np.ndarray, "S"]
    prompts: Float[np.ndarray, "P"]
    """Prompt effects, shrunk to the variance beyond the cells' own noise."""
    variance: float
    degrees_of_freedom: float
    """Welch and Satterthwaite's, for `variance`: S−1 where seeds dominate, more where prompts do."""


def decompose(cells: Float[np.ndarray, "S P"]) -> Components:
    """Split cells into two-way random effects by the method of moments; NaN cells are left out of every mean."""
    if cells.ndim != 2 or not np.isfinite(cells).any():
        raise UsageError(f"cells: need a [seeds, prompts] array with a scored cell, found shape {cells.shape}")
    cells = cells[np.isfinite(cells).any(axis=1)][:, np.isfinite(cells).any(axis=0)]
    known = np.isfinite(cells)
    count_s, count_p = cells.shape
    row = np.nanmean(cells, axis=1)  # [S]
    value = float(row.mean())
    seeds = row - value
    prompts = np.nanmean(cells - row[:, None], axis=0)  # [P]
    prompts = prompts - prompts.mean()
    from_seeds = float(seeds @ seeds) / (count_s - 1) / count_s if count_s > 1 else 0.0
    # With one seed or one prompt there are no two ways to separate.
    if count_s < 2 or count_p < 2:
        return Components(value, seeds, np.zeros(count_p), from_seeds, float(max(count_s - 1, 1)))
    # Mean squares of the two-way layout: `between` holds the prompts' variance and the noise, `within` the noise alone.
    noise = np.where(known, cells - value - seeds[:, None] - prompts[None, :], 0.0)
    noise_df = max(int(known.sum()) - count_s - count_p + 1, 1)
    between = count_s * float(prompts @ prompts) / (count_p - 1)
    within = float((noise**2).sum()) / noise_df
    excess = max(0.0, between - within) / count_s  # the prompts' own variance
    raw = float(prompts @ prompts) / (count_p - 1)
    prompts = prompts * np.sqrt(excess / raw) if excess > 0.0 else np.zeros(count_p)
    from_prompts = excess / count_p
    total = from_seeds + from_prompts
    # Satterthwaite: `total² / Σ var(part)`, with the variance of a mean square `2·MS²/df` (the 2s cancel).
    spread = 0.0
    if excess > 0.0:
        spread = (between**2 / (count_p - 1) + within**2 / noise_df) / (count_s * count_p) ** 2
    below = from_seeds**2 / (count_s - 1) + spread
    fewest = float(min(count_s, count_p) - 1)
    # A sum of variances has at least as many degrees as the smallest part; `excess` is a difference and has no such bound.
    freedom = max(fewest, total**2 / below) if below > 0.0 else float(count_s - 1)
    return Components(value, seeds, prompts, total, freedom)


@lru_cache(maxsize=16)
def _weights(units: int, resamples: int, seed: int, level: str) -> Float[np.ndarray, "B units"]:
    """Draw n−1 of n units with replacement; return the share of the draws that each unit got, resample by resample."""
    drawn = max(units - 1, 1)
    # Seeds and prompts must draw independently, also where there are as many of one as of the other.
    generator = np.random.default_rng([seed, units, ord(level[0])])
    weights = generator.multinomial(drawn, np.full(units, 1.0 / units), size=resamples) / drawn
    # The array is cached and shared by all callers.
    weights.setflags(write=False)
    return weights


def bootstrap(cells: Float[np.ndarray, "S P"], *, resamples: int = 10_000, seed: int = 0) -> Float[np.ndarray, "B"]:
    """Return resampled means, float64 `[resamples]`: `m + Σ_s w_s a_s + Σ_p u_p b_p`.

    `a` are the seeds' effects, `b` the prompts' (shrunk), `w` and `u` the shares in which each was drawn. The
    same `seed` gives every condition of the same shape the same shares, so functions of several conditions
    are resampled jointly.

    Args:
        cells: `[S, P]`, from `to_cells` or `paired`; NaN where unscored. `[S, 1]` where only a mean per seed
            is known.

    Raises:
        UsageError: no cell is scored.

    Source: Davison and Hinkley, *Bootstrap Methods and their Application* (1997), section 3.8; the semantics
    differ from the common "resample every level", whose intervals are too wide within seeds and too narrow
    between them.

    Example:
        >>> draws = bootstrap(np.array([[0.1, 0.3], [0.2, 0.4], [0.6, 0.8]]))
        >>> draws.shape, round(float(draws.mean()), 1)
        ((10000,), 0.4)
    """
    parts = decompose(cells)
    draws = np.full(resamples, parts.value)
    draws += _weights(len(parts.seeds), resamples, seed, "seeds") @ parts.seeds
    draws += _weights(len(parts.prompts), resamples, seed, "prompts") @ parts.prompts
    return draws
