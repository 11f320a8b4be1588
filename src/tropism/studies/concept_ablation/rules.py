"""Why does concept ablation work? The hypotheses about it, by rule, from tables alone.

`E(g)` is how much lower the trait's rate is under guard `g` than in the baseline, paired by seed and prompt; `m` the
margin. For every ablation (forward) and gradient projection (backward) on the same directions:

- **training dynamics**: both remove the trait, and `E(forward) − E(backward)` lies within ±m;
- **representational**: forward removes it, and `E(forward) − 2·E(backward)` lies above 0;
- **trade-off**: backward removes it, and keeps more of the task or of coherence than forward, and less of none.

And about the inside of the trained models, read without their guards on the same chats, per site against the base:

- **variance along the directions**: suppressed by forward (less than half of the base's), kept by backward (at least half);
- **cosine of gradient and subspace**: lowered by backward (below 0).

Each is *supported*, *not supported* where its interval lies on the other side, or else *undecided*; under three seeds
all are undecided. The expectations are those of Casademunt et al. (2025); none is asserted, each is computed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from tropism import stats
from tropism.errors import UsageError
from tropism.names import BASE
from tropism.results.rules import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Requirement, all_numbers, numbers, shown
from tropism.results.section import Claim
from tropism.results.text import words
from tropism.stats import Bounds, Estimate

FORWARD, BACKWARD = "ablation", "gradient_projection"
KEPT = math.log(0.5)
"""The log ratio between kept and suppressed: half of the base's variance is left."""
KEYS = ["directions", "site"]
COLUMNS = (
    "condition", "seed", *KEYS, "variance_along", "variance_total", "share", "null_share", "mean_along", "tokens",
    "cosine", "cosine_sd", "null_cosine", "gradient_norm", "chats",
)  # fmt: skip
"""What is measured of a run, a row per directions and site."""
NO_RUN = "A condition has no finished run that could be compared."

Column = tuple[str, str]
"""A metric and the evaluation set that it is taken on."""
Cells = Callable[[Column, Sequence[str]], Sequence[np.ndarray] | None]
"""Gives the scores `[S, P]` of some conditions on a metric, over the seeds and prompts that all have, or None."""


@dataclass(frozen=True)
class Arm:
    """A condition whose one guard acts on directions."""

    condition: str
    guard: str
    directions: str
    mode: str = ""
    """Of an ablation: `both`, or `forward` alone with the gradients whole."""
    random: bool = False
    """Whether random directions stand in for these: the control."""

    @property
    def what(self) -> str:
        """The guard in words."""
        said = words(self.guard) + (f", {self.mode}" if self.mode else "")
        return f"{said}, random directions" if self.random else said


@dataclass(frozen=True)
class Asked:
    """Which metrics the hypotheses are about."""

    baseline: str
    trait: Column
    kept: Mapping[Column, int] = field(default_factory=dict)
    """Metric and evaluation set → 1 where higher is better (the task), −1 where lower is (a perplexity)."""
    margin: float = 0.1
    bounds: Mapping[str, Bounds | None] = field(default_factory=dict)
    """Metric → the least and the largest value it can take; missing or None where it has no bounds."""


@dataclass(frozen=True)
class Removal:
    """What a pair of guards removes of the trait: `E(forward)`, `E(backward)`, and how they compare."""

    forward: Estimate | None
    backward: Estimate | None
    gap: Estimate | None
    """`E(forward) − E(backward)`."""
    ratio: Estimate | None
    """`E(forward) − 2·E(backward)`: above 0 where forward removes more than twice as much."""

    @classmethod
    def of(cls, base: np.ndarray, forward: np.ndarray, backward: np.ndarray, bounds: Bounds | None) -> "Removal":
        """Estimate it from the scores `[S, P]` of the baseline and both guards, paired cell by cell."""
        # From the cells, so that what a seed or a prompt adds to both guards cancels.
        twice = (base - forward) - 2.0 * (base - backward)
        return cls(
            forward=change(base, forward, bounds),
            backward=change(base, backward, bounds),
            gap=change(backward, forward, bounds),
            ratio=_mean(twice, stats.bounds_of_sum(bounds, (-1, -1, 2))),
        )


def pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Return every ablation with every gradient projection on the same directions, controls left out."""
    found = []
    for one in arms:
        for other in arms:
            matched = (one.guard, other.guard) == (FORWARD, BACKWARD) and one.directions == other.directions
            if matched and not one.random and not other.random:
                found.append((one, other))
    return found


def hypotheses(forward: Arm, backward: Arm, asked: Asked, cells: Cells) -> list[Claim]:
    """Return the three claims about a pair of guards, with the numbers that they rest on."""
    said = f"{words(forward.condition)} against {words(backward.condition)}"
    names = [f"{said}: {name}" for name in ("training dynamics", "representational", "trade-off")]
    found = cells(asked.trait, [asked.baseline, forward.condition, backward.condition])
    if found is None:
        return [Claim(name, UNDECIDED, NO_RUN) for name in names]
    base, one, other = found
    removal = Removal.of(base, one, other, asked.bounds.get(asked.trait[0]))
    gains = {}
    for column, sign in asked.kept.items():
        two = cells(column, [forward.condition, backward.condition])
        if two is not None:
            gains[column] = better(two[1], two[0], sign, asked.bounds.get(column[0]))
    removed = f"The activations' guard removes {shown(removal.forward)}, the gradients' {shown(removal.backward)}"
    listed = "; ".join(f"{words(metric)} on {words(on)} {shown(gain)}" for (metric, on), gain in gains.items())
    both = all_numbers({"E(forward)": removal.forward, "E(backward)": removal.backward})
    kept = {f"{metric}, {on}": numbers(gain) for (metric, on), gain in gains.items()}
    verdicts = _verdicts(removal, [gain for gain in gains.values() if gain is not None], asked.margin)
    return [
        Claim(
            names[0], verdicts[0],
            f"{removed}; the difference is {shown(removal.gap)}, and would have to lie within ±{asked.margin:g}.",
            {**both, "E(forward) − E(backward)": numbers(removal.gap), "margin": asked.margin},
        ),
        Claim(
            names[1], verdicts[1],
            f"{removed}; E(forward) − 2·E(backward) is {shown(removal.ratio)}, and would have to lie above 0.",
            {**both, "E(forward) − 2·E(backward)": numbers(removal.ratio)},
        ),
        Claim(
            names[2], verdicts[2],
            f"The gradients' guard removes {shown(removal.backward)} and keeps, beyond what the activations' guard keeps: "
            f"{listed or 'nothing that was measured'}.",
            {"E(backward)": numbers(removal.backward), **kept},
        ),
    ]  # fmt: skip


def beyond_random(arms: Sequence[Arm], asked: Asked, cells: Cells) -> Iterator[Claim]:
    """Compare each guard with those of its kind on random directions of the same rank."""
    for arm in arms:
        for control in arms:
            alike = (arm.guard, arm.directions) == (control.guard, control.directions)
            if arm.random or not control.random or not alike:
                continue
            found = cells(asked.trait, [arm.condition, control.condition])
            removed = None if found is None else change(found[1], found[0], asked.bounds.get(asked.trait[0]))
            more = Requirement("removed beyond random", removed, above=0.0, against=asked.margin)
            because = NO_RUN if removed is None else f"Beyond {words(control.condition)} it removes {shown(removed)}."
            claim = f"{words(arm.condition)} removes more than random directions of the same rank"
            yield Claim(claim, more.verdict, because, {more.name: numbers(removed)})


def training_dynamics(forward: Estimate, backward: Estimate, gap: Estimate, margin: float) -> str:
    """Decide "backward removes as much as forward", with `gap = E(forward) − E(backward)`.

    `supported` where both remove the trait and the gap lies within ±margin; `not supported` where the gap lies beyond,
    or where neither removes as much as the margin.
    """
    if forward.low is None or backward.low is None or gap.low is None:
        return UNDECIDED
    both_remove = forward.lies_above(0) and backward.lies_above(0)
    if both_remove and gap.lies_above(-margin) and gap.lies_below(margin):
        return SUPPORTED
    apart = gap.lies_above(margin) or gap.lies_below(-margin)
    return NOT_SUPPORTED if apart or _neither(forward, backward, margin) else UNDECIDED


def representational(forward: Estimate, ratio: Estimate, margin: float) -> str:
    """Decide "forward removes more than twice what backward does", with `ratio = E(forward) − 2·E(backward)`.

    `supported` where forward removes the trait and the ratio lies above 0; `not supported` where the ratio lies below
    0, or where forward does not remove as much as the margin.
    """
    if forward.low is None or ratio.low is None:
        return UNDECIDED
    if forward.lies_above(0) and ratio.lies_above(0):
        return SUPPORTED
    return NOT_SUPPORTED if ratio.lies_below(0) or forward.lies_below(margin) else UNDECIDED


def trade_off(backward: Estimate, gains: Sequence[Estimate]) -> str:
    """Decide "backward removes the trait, and keeps more than forward and less of nothing"."""
    if backward.low is None or any(gain.low is None for gain in gains):
        return UNDECIDED
    if backward.lies_below(0) or any(gain.lies_below(0) for gain in gains):
        return NOT_SUPPORTED
    return SUPPORTED if backward.lies_above(0) and any(gain.lies_above(0) for gain in gains) else UNDECIDED


def mechanism(forward: Estimate, backward: Estimate, gap: Estimate, ratio: Estimate, margin: float) -> str:
    """Pick the one mechanism: `training dynamics`, `representational`, `not supported` or `undecided`."""
    if forward.low is None or backward.low is None:
        return UNDECIDED
    if training_dynamics(forward, backward, gap, margin) == SUPPORTED:
        return "training dynamics"
    if representational(forward, ratio, margin) == SUPPORTED:
        return "representational"
    return NOT_SUPPORTED if _neither(forward, backward, margin) else UNDECIDED


def expectation(arm: Arm, measured: str) -> str:
    """Return what is expected of a guard: `suppressed` or `kept` of the `variance`, `lowered` of the `cosine`, or nothing."""
    if arm.random:
        return ""
    if measured == "variance":
        return {FORWARD: "suppressed", BACKWARD: "kept"}.get(arm.guard, "")
    return "lowered" if arm.guard == BACKWARD else ""


def judge(expected: str, found: Estimate | None) -> str:
    """Decide whether a log ratio (variance) or a change (cosine) came out as expected; empty where nothing is expected."""
    if not expected:
        return ""
    if expected == "kept":
        return Requirement(expected, found, above=KEPT).verdict
    return Requirement(expected, found, below=0.0 if expected == "lowered" else KEPT).verdict


def against_base(inside: pd.DataFrame) -> pd.DataFrame:
    """Return the table of all runs with what the base has at the same directions and site beside each.

    Further columns: `variance_base`, `variance_ratio` (under 1: suppressed), `cosine_base`, `cosine_change` (under 0:
    lowered); missing where the base was not measured. Raises `UsageError` where a column is missing or a row is twice.
    """
    missing = [name for name in COLUMNS if name not in inside.columns]
    if missing:
        raise UsageError(f"inside: the table lacks the columns {', '.join(missing)}")
    twice = inside.duplicated(["condition", "seed", *KEYS])
    if twice.any():
        row = inside[twice].iloc[0]
        raise UsageError(f"inside: {row['condition']}, {row['directions']} at {row['site']} is there twice")
    base = inside.loc[inside["condition"] == BASE, [*KEYS, "variance_along", "cosine"]]
    named = base.rename(columns={"variance_along": "variance_base", "cosine": "cosine_base"})
    table = inside.merge(named, on=KEYS, how="left")
    # A ratio to nothing is missing, not infinite.
    known = table["variance_base"].where(table["variance_base"] > 0)
    table["variance_ratio"] = table["variance_along"] / known
    table["cosine_change"] = table["cosine"].astype(float) - table["cosine_base"].astype(float)
    return table


def over_sites(
    inside: pd.DataFrame, condition: str, directions: str, column: str, log: bool = False
) -> Estimate | None:
    """Return a column's mean over sites (of its logarithm, with `log`), seed by seed; None where it was not measured."""
    rows = inside[(inside["condition"] == condition) & (inside["directions"] == directions)]
    values = rows[column].astype(float)
    # Sites differ in scale by orders of magnitude; the mean of logs is that of ratios.
    table = rows.assign(value=np.log(values) if log else values, seed=rows["seed"].fillna(-1))
    by_seed = table.groupby("seed")["value"].mean().to_numpy(dtype=np.float64)
    return _mean(by_seed[:, None]) if len(by_seed) else None


def change(reference: np.ndarray, treated: np.ndarray, bounds: Bounds | None = None) -> Estimate | None:
    """Return `reference − treated`, paired cell by cell; None where no cell has both. `bounds` are those of a value."""
    if not np.isfinite(reference - treated).any():
        return None
    return stats.difference(reference, treated).within(stats.bounds_of_sum(bounds, (1, -1)))


def better(one: np.ndarray, other: np.ndarray, sign: int, bounds: Bounds | None = None) -> Estimate | None:
    """Return by how much `one` is better than `other`: higher where `sign` is 1, lower where it is −1."""
    return change(one, other, bounds) if sign > 0 else change(other, one, bounds)


def _verdicts(removal: Removal, gains: Sequence[Estimate], margin: float) -> tuple[str, str, str]:
    forward, backward, gap, ratio = removal.forward, removal.backward, removal.gap, removal.ratio
    if forward is None or backward is None or gap is None or ratio is None:
        return UNDECIDED, UNDECIDED, UNDECIDED
    return (
        training_dynamics(forward, backward, gap, margin),
        representational(forward, ratio, margin),
        trade_off(backward, gains) if gains else UNDECIDED,
    )


def _neither(forward: Estimate, backward: Estimate, margin: float) -> bool:
    """Whether neither guard removes as much as the margin."""
    return forward.lies_below(margin) and backward.lies_below(margin)


def _mean(cells: np.ndarray, bounds: Bounds | None = None) -> Estimate | None:
    return stats.interval(cells, contrast=True).within(bounds) if np.isfinite(cells).any() else None
