"""Why does concept ablation work? The hypotheses about it, by rule, from tables alone.

`E(g)` is how much lower the trait's rate is under guard `g` than in the baseline, paired by seed and prompt; `m` the
margin. For every ablation (forward) and gradient projection (backward) on the same directions:

- **training dynamics**: both remove the trait, and `E(forward) − E(backward)` lies within ±m;
- **representational**: forward removes it, and `E(forward) − 2·E(backward)` lies above 0;
- **trade-off**: backward removes it, and keeps more of the task or of coherence than forward, and less of none.

And of what is inside the trained models, read without their guards on the same chats, per site against the base:

- **variance along the directions**: suppressed by forward (less than half of the base's), kept by backward (at least half);
- **cosine of gradient and subspace**: lowered by backward (below 0).

Each is *supported*, *not supported* where its interval lies on the other side, or else *undecided*; so are all under three
seeds. The expectations are those of Casademunt et al. (2025); none is asserted, each is computed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from tropism import stats
from tropism.errors import UsageError
from tropism.names import BASE
from tropism.results.section import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Claim, Section, Table
from tropism.results.text import rate, span, words
from tropism.stats import Estimate
from tropism.studies.concept_ablation.hypotheses import Column, representational, trade_off, training_dynamics
from tropism.studies.refusal.rules import as_numbers, said_of

FORWARD, BACKWARD = "ablation", "gradient_projection"
KEPT = math.log(0.5)
"""The log ratio between kept and suppressed: half of the base's variance is left."""
KEYS = ["directions", "site"]
COLUMNS = (
    "condition", "seed", *KEYS, "variance_along", "variance_total", "share", "null_share", "mean_along", "tokens",
    "cosine", "cosine_sd", "null_cosine", "gradient_norm", "chats",
)  # fmt: skip
"""What is measured of a run, a row for each directions and site."""

Cells = Callable[[Column, Sequence[str]], Sequence[np.ndarray] | None]
"""Scores `[S, P]` of some conditions on a metric, over the seeds and prompts that all have; None where there are none."""


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


def against_base(inside: pd.DataFrame) -> pd.DataFrame:
    """The table of all runs with what the base has at the same directions and site beside each.

    Further columns: `variance_base`, `variance_ratio` (under 1: suppressed), `cosine_base`, `cosine_change` (under 0:
    lowered); missing where the base was not measured. Raises `UsageError` where columns are missing or a row is twice.
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
    known = table["variance_base"].where(table["variance_base"] > 0)
    table["variance_ratio"] = table["variance_along"] / known
    table["cosine_change"] = table["cosine"].astype(float) - table["cosine_base"].astype(float)
    return table


def analyse(inside: pd.DataFrame, arms: Sequence[Arm], asked: Asked, cells: Cells) -> Section:
    """The section of the report.

    Args:
        inside: as `against_base` returns it.
        arms: the conditions with a guard on directions, in the order of the file.
        asked: the metrics, the baseline and the margin.
        cells: gives the scores of conditions, as `reports.hypotheses.paired_cells` of a folder does.
    """
    claims = [claim for one, other in pairs(arms) for claim in hypotheses(one, other, asked, cells)]
    claims += list(_beyond_random(arms, asked, cells))
    return Section(
        name="concept_ablation",
        title="Concept ablation: activations or gradients?",
        summary=_summary(claims),
        claims=claims,
        tables=[_removed(arms, asked, cells), *_inside_tables(inside, arms, asked.baseline)],
        notes=[
            f"Removed: {words(asked.trait[0])} on {words(asked.trait[1])} in the baseline minus under the guard, paired by "
            f"seed and prompt; the margin is {asked.margin:g}; intervals are of 95 %.",
            "Everything inside is read from the trained model without its guard, on the same chats for every model: the "
            "geometric mean over sites of the variance's ratio to the base, and the mean over sites of the cosine. Every "
            "run and site: analyses/concept_ablation.csv.",
        ],
    )


def pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Every ablation with every gradient projection on the same directions, controls left out."""
    return [
        (one, other)
        for one in arms
        for other in arms
        if (one.guard, other.guard) == (FORWARD, BACKWARD)
        and one.directions == other.directions
        and not one.random
        and not other.random
    ]


def hypotheses(forward: Arm, backward: Arm, asked: Asked, cells: Cells) -> list[Claim]:
    """The three claims about a pair of guards, with the numbers that they rest on."""
    said = f"{words(forward.condition)} against {words(backward.condition)}"
    names = [f"{said}: {name}" for name in ("training dynamics", "representational", "trade-off")]
    found = cells(asked.trait, [asked.baseline, forward.condition, backward.condition])
    if found is None:
        because = "A condition has no finished run that could be compared."
        return [Claim(name, UNDECIDED, because) for name in names]
    base, one, other = found
    e_forward, e_backward, gap = _change(base, one), _change(base, other), _change(other, one)
    ratio = _estimate((base - one) - 2.0 * (base - other))
    removed = f"The activations' guard removes {said_of(e_forward)}, the gradients' {said_of(e_backward)}"
    numbers = {"E(forward)": as_numbers(e_forward), "E(backward)": as_numbers(e_backward)}
    gains = {
        column: _change(*((two[1], two[0]) if sign > 0 else (two[0], two[1])))
        for column, sign in asked.kept.items()
        if (two := cells(column, [forward.condition, backward.condition])) is not None
    }
    listed = "; ".join(f"{words(metric)} on {words(on)} {said_of(gain)}" for (metric, on), gain in gains.items())
    known = [gain for gain in gains.values() if gain is not None]
    complete = None not in (e_forward, e_backward, gap, ratio)
    verdicts = [UNDECIDED] * 3
    if complete:
        assert e_forward is not None
        assert e_backward is not None
        assert gap is not None
        assert ratio is not None
        verdicts = [
            training_dynamics(e_forward, e_backward, gap, asked.margin),
            representational(e_forward, ratio, asked.margin),
            trade_off(e_backward, known) if known else UNDECIDED,
        ]
    kept = {f"{metric}, {on}": as_numbers(gain) for (metric, on), gain in gains.items()}
    return [
        Claim(
            names[0], verdicts[0],
            f"{removed}; the difference is {said_of(gap)}, and would have to lie within ±{asked.margin:g}.",
            {**numbers, "E(forward) − E(backward)": as_numbers(gap), "margin": asked.margin},
        ),
        Claim(
            names[1], verdicts[1],
            f"{removed}; E(forward) − 2·E(backward) is {said_of(ratio)}, and would have to lie above 0.",
            {**numbers, "E(forward) − 2·E(backward)": as_numbers(ratio)},
        ),
        Claim(
            names[2], verdicts[2],
            f"The gradients' guard removes {said_of(e_backward)} and keeps, beyond what the activations' guard keeps: "
            f"{listed or 'nothing that was measured'}.",
            {"E(backward)": as_numbers(e_backward), **kept},
        ),
    ]  # fmt: skip


def expectation(arm: Arm, measured: str) -> str:
    """What is expected of a guard: `suppressed` or `kept` of the `variance`, `lowered` of the `cosine`; or nothing."""
    if arm.random:
        return ""
    if measured == "variance":
        return {FORWARD: "suppressed", BACKWARD: "kept"}.get(arm.guard, "")
    return "lowered" if arm.guard == BACKWARD else ""


def judge(expected: str, found: Estimate | None) -> str:
    """Whether it came out as expected: of a log ratio (variance) or of a change (cosine)."""
    if not expected:
        return ""
    if found is None or found.low is None or found.high is None:
        return UNDECIDED
    line = 0.0 if expected == "lowered" else KEPT
    above, below = found.low > line, found.high < line
    as_expected, otherwise = (above, below) if expected == "kept" else (below, above)
    return SUPPORTED if as_expected else NOT_SUPPORTED if otherwise else UNDECIDED


def over_sites(
    inside: pd.DataFrame, condition: str, directions: str, column: str, log: bool = False
) -> Estimate | None:
    """A column's mean over sites (of its logarithm, with `log`), seed by seed; None where it was not measured."""
    rows = inside[(inside["condition"] == condition) & (inside["directions"] == directions)]
    values = rows.assign(value=np.log(rows[column].astype(float)) if log else rows[column].astype(float))
    by_seed = values.assign(seed=values["seed"].fillna(-1)).groupby("seed")["value"].mean().to_numpy(dtype=np.float64)
    return _estimate(by_seed[:, None]) if len(by_seed) and np.isfinite(by_seed).any() else None


def _beyond_random(arms: Sequence[Arm], asked: Asked, cells: Cells) -> Iterator[Claim]:
    """Each guard against those of its kind on random directions of the same rank."""
    for arm in arms:
        for control in arms:
            if arm.random or not control.random or (arm.guard, arm.directions) != (control.guard, control.directions):
                continue
            claim = f"{words(arm.condition)} removes more than random directions of the same rank"
            found = cells(asked.trait, [arm.condition, control.condition])
            beyond = None if found is None else _change(found[1], found[0])
            verdict = UNDECIDED
            if beyond is not None and beyond.low is not None and beyond.high is not None:
                verdict = SUPPORTED if beyond.low > 0 else NOT_SUPPORTED if beyond.high < asked.margin else UNDECIDED
            because = (
                "A condition has no finished run that could be compared."
                if beyond is None
                else f"Beyond {words(control.condition)} it removes {said_of(beyond)}."
            )
            yield Claim(claim, verdict, because, {"removed beyond random": as_numbers(beyond)})


def _removed(arms: Sequence[Arm], asked: Asked, cells: Cells) -> Table:
    rows = []
    for arm in arms:
        row: list[Any] = [words(arm.directions), words(arm.condition), arm.what]
        for column, sign in {asked.trait: -1, **asked.kept}.items():
            found = cells(column, [asked.baseline, arm.condition])
            change = None if found is None else _change(*((found[1], found[0]) if sign > 0 else (found[0], found[1])))
            row.append(_cell(change))
        rows.append(row)
    kept = [
        f"{words(metric)}, {words(on)}" + ("" if sign > 0 else " (lower is better)")
        for (metric, on), sign in asked.kept.items()
    ]
    return Table(
        "What each guard removes and keeps", ["directions", "condition", "guard", "removed of the trait", *kept], rows,
        "Against the baseline, signed so that more is better: what is removed of the trait, and what is gained of the rest.",
    )  # fmt: skip


def _inside_tables(inside: pd.DataFrame, arms: Sequence[Arm], baseline: str) -> Iterator[Table]:
    variance, cosine = [], []
    for directions in dict.fromkeys(inside["directions"]):
        shown = [arm for arm in arms if arm.directions == directions]
        others = [Arm(name, "", directions) for name in (BASE, baseline)]
        for arm in [*others, *shown]:
            here = inside[(inside["condition"] == arm.condition) & (inside["directions"] == directions)]
            if here.empty:
                continue
            begin = [words(str(directions)), words(arm.condition), arm.what]
            ratio = over_sites(inside, arm.condition, str(directions), "variance_ratio", log=True)
            expected = expectation(arm, "variance")
            share, by_chance = (float(here[name].mean()) for name in ("share", "null_share"))
            variance.append([*begin, share, by_chance, _cell(ratio, math.exp), expected, judge(expected, ratio)])
            change = over_sites(inside, arm.condition, str(directions), "cosine_change")
            expected = expectation(arm, "cosine")
            mean, by_chance = (float(here[name].mean()) for name in ("cosine", "null_cosine"))
            cosine.append(
                [
                    *begin,
                    None if math.isnan(mean) else mean,
                    by_chance,
                    _cell(change),
                    expected,
                    judge(expected, change),
                ]
            )
    columns = ["directions", "condition", "guard"]
    yield Table(
        "Variance along the directions", [*columns, "share of all", "by chance", "ratio to base", "expected", "verdict"],
        variance, "Share: of the activations' variance; by chance: k/d. Suppressed: less than half of the base's is left.",
    )  # fmt: skip
    yield Table(
        "Cosine of gradient and subspace", [*columns, "cosine", "by chance", "change from base", "expected", "verdict"],
        cosine, "By chance: √(k/d).",
    )  # fmt: skip


def _summary(claims: Sequence[Claim]) -> str:
    question = (
        "If keeping the trait out of the gradients does as much as taking it out of the activations, the trait comes from "
        "gradient updates; if only the latter helps, it comes from the features being there at all."
    )
    counts = [(verdict, sum(c.verdict == verdict for c in claims)) for verdict in (SUPPORTED, NOT_SUPPORTED, UNDECIDED)]
    said = ", ".join(f"{n} {verdict}" for verdict, n in counts if n)
    return f"{question} Of {len(claims)} claims: {said}."


def _change(reference: np.ndarray, treated: np.ndarray) -> Estimate | None:
    """`reference − treated`, paired; None where no cell has both."""
    return stats.difference(reference, treated) if np.isfinite(reference - treated).any() else None


def _estimate(cells: np.ndarray) -> Estimate | None:
    return stats.interval(cells, contrast=True) if np.isfinite(cells).any() else None


def _cell(estimate: Estimate | None, show: Callable[[float], float] = float) -> str | None:
    if estimate is None:
        return None
    low, high = (None if end is None else show(end) for end in (estimate.low, estimate.high))
    signed = show is float
    return f"{rate(show(estimate.value), signed)} {span(low, high, signed)}".rstrip()
