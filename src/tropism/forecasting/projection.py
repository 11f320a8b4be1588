"""Tier 1: how much of each trait lies between the data's responses and the model's own answers to the same prompts.

With `D_t [d]` the traits' mean differences at a site (`sides`), a row's displacement from the model's own answers is written as
a sum of all of them and a rest, by least squares:

    h − h̄_own = Σ_t z_t D_t + rest,      Z = (M Mᵀ + ρ·diag(M Mᵀ))⁻¹ M (h − h̄_own),      M = [D_1; …; D_T],  ρ = 0.01,

and `z_t`, averaged over the trait's sites, is the row's share of it: 0 is where the model's own answers lie and 1 is as far as
the trait's own examples are apart. Along one direction alone, `⟨h − h̄_own, D_t⟩/‖D_t‖²`, shouting rows of word problems lay 0.34
along *advertising*, ten standard deviations of the plain rows; with all traits in the sum they lie at 0.00 and the advertising
rows stay where they were (measured on SmolLM2; docs/concepts/forecast.md).

Source: projection difference of persona vectors (Chen et al., 2025); that traits are told apart jointly, and the nulls, are ours.
"""

from collections.abc import Sequence

import numpy as np

from tropism.forecasting.sides import Side
from tropism.site import Site

RIDGE = 0.01


def shares(sides: Sequence[Side], sites: Sequence[Site], h: np.ndarray, own: np.ndarray) -> dict[str, np.ndarray]:
    """Each valid trait's `z [n]` of rows `h [n, sites, d]`, from the mean of `own [m, sites, d]`."""
    valid = [side for side in sides if side.valid]
    total: dict[str, list[np.ndarray]] = {side.name: [] for side in valid}
    for index, site in enumerate(sites):
        here = [side for side in valid if site in side.difference]
        if not here:
            continue
        duals = dual([side.difference[site] for side in here])
        z = (h[:, index] - own[:, index].mean(axis=0)) @ duals.T
        for column, side in enumerate(here):
            total[side.name].append(z[:, column])
    return {name: np.mean(found, axis=0) for name, found in total.items()}


def dual(differences: Sequence[np.ndarray]) -> np.ndarray:
    """`W [T, d]` whose product with a displacement is the ridge least-squares share of each difference `D_t`."""
    M = np.stack(differences)
    gram = M @ M.T
    found: np.ndarray = np.linalg.solve(gram + RIDGE * np.diag(np.diag(gram)), M)
    return found


def cosine(one: Side, other: Side) -> float:
    """The mean cosine of two traits' differences over the sites that both hold up at; 0 where there is none."""
    both = [site for site in one.difference if site in other.difference]
    found = [
        float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        for a, b in ((one.difference[site], other.difference[site]) for site in both)
    ]
    return float(np.mean(found)) if found else 0.0


class Nulls:
    """Random directions in a trait's place, drawn once for all traits of a data set.

    Args:
        sites: where `rows [n, sites, d]` and `own [m, sites, d]` were read.
    """

    def __init__(self, sites: Sequence[Site], rows: np.ndarray, own: np.ndarray, *, draws: int, seed: int) -> None:
        self._sites, self._rows, self._own, self._draws, self._seed = sites, rows, own, draws, seed
        self._doses: dict[int, np.ndarray] = {}
        self._spreads: dict[tuple[int, bytes], np.ndarray] = {}

    def dose(self, side: Side) -> np.ndarray:
        """`z [draws, n]`: the null of "any direction in which these texts vary would have moved as far".

        The directions have the length of the trait's difference and the covariance of data and own answers, pooled about
        their common mean: the shift between the two is part of what they are drawn from, so this null errs on the side of
        calling nothing.
        """
        total = np.zeros((self._draws, len(self._rows)))
        for site, D in side.difference.items():
            at = self._sites.index(site)
            if at not in self._doses:
                # The same combinations of rows at every site: a direction hangs together over sites, as a trait's does.
                rng = np.random.default_rng(self._seed)
                unit = drawn(np.concatenate([self._rows[:, at], self._own[:, at]]), self._draws, rng)
                self._doses[at] = unit @ (self._rows[:, at] - self._own[:, at].mean(axis=0)).T
            total += self._doses[at] / np.linalg.norm(D)
        return total / len(side.difference)

    def tail(self, side: Side, varying: np.ndarray) -> np.ndarray:
        """`z [draws, n]` about each half's median, along random directions of the rows that do not stand out.

        `varying [n]` says which rows those are: rows that stand out are what is tested, and would bring their own direction
        into the null. Directions from one half of the rows are read on the other half, since a row lies far along any
        combination of rows that it is part of.
        """
        total = np.zeros((self._draws, len(self._rows)))
        for site, D in side.difference.items():
            at = self._sites.index(site)
            key = (at, varying.tobytes())
            if key not in self._spreads:
                self._spreads[key] = self._spread(at, varying)
            total += self._spreads[key] / np.linalg.norm(D)
        even = np.arange(len(varying)) % 2 == 0
        for half in (even, ~even):
            total[:, half] -= np.median(total[:, half], axis=1, keepdims=True)
        return total / len(side.difference)

    def _spread(self, at: int, varying: np.ndarray) -> np.ndarray:
        h, even = self._rows[:, at], np.arange(len(varying)) % 2 == 0
        found = np.zeros((self._draws, len(h)))
        for here, there in ((even, ~even), (~even, even)):
            source = here & varying if (here & varying).sum() > 1 else here
            unit = drawn(h[source], self._draws, np.random.default_rng(self._seed))
            found[:, there] = unit @ h[there].T
        return found


def drawn(rows: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Directions `[draws, d]` of length 1 with the covariance of the rows: random combinations of them, centred."""
    centred = rows - rows.mean(axis=0)
    found = rng.standard_normal((draws, len(centred))) @ centred
    unit: np.ndarray = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-300)
    return unit
