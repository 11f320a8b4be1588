"""What concept ablation predicts, evaluated by rule on the table: training dynamics, representation, or a
trade-off.

With `E(guard) = unwanted(baseline) − unwanted(guard)`, paired by seed and prompt:

- **training dynamics**: both remove the trait, and the interval of `E(forward) − E(backward)` lies within
  ±margin;
- **representational**: forward removes it, and the interval of `E(forward) − 2·E(backward)` lies above 0;
- **trade-off**: backward removes it, and keeps more of a wanted metric than forward (interval above 0), less
  of none.

What the intervals do not decide is undecided; nothing is concluded from an interval that includes 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tropism import stats
from tropism.results.folder import RunFolder
from tropism.results.roles import Role, guards_of, role_of
from tropism.results.section import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Claim, Section
from tropism.results.summary import baseline_name, cells_of, margin_of
from tropism.results.text import rate, span, words
from tropism.stats import Estimate

FORWARD = {"ablation"}
BACKWARD = {"gradient_projection"}
ANALYSIS = "concept_ablation"
"""The analysis of an experiment that evaluates these hypotheses itself."""
Column = tuple[str, str]


@dataclass(frozen=True)
class Pair:
    """The condition that ablates activations, and the one that projects gradients."""

    forward: str
    backward: str


def sections(summary: pd.DataFrame, folder: RunFolder) -> Iterator[Section]:
    """One section for each pair of a forward and a backward guard that has been measured; none where there is
    no pair, or where the analysis `concept_ablation` says it with more.
    """
    if summary.empty or ANALYSIS in (folder.experiment.get("analyses") or {}):
        return
    for pair in pairs(summary, folder.experiment):
        claims = [claim for column in columns(summary, "unwanted") for claim in _claims(pair, column, summary, folder)]
        if claims:
            yield Section(
                name=f"concept-ablation-{pair.forward}-{pair.backward}",
                title=f"Why ablation works: {words(pair.forward)} against {words(pair.backward)}",
                summary=(
                    "If keeping the trait out of the gradients does as much as taking it out of the "
                    "activations, the trait comes "
                    "from gradient updates; if only the latter helps, it comes from the features being "
                    "there at all."
                ),
                claims=claims,
            )


def pairs(summary: pd.DataFrame, experiment: dict[str, Any]) -> list[Pair]:
    """Single guards on the same directions: an ablation and a gradient projection, controls left out."""
    found: dict[str, dict[str, str]] = {}
    for condition in dict.fromkeys(summary["condition"]):
        guards = guards_of(experiment, str(condition))
        if len(guards) != 1 or role_of(experiment, str(condition)) is not Role.GUARD:
            continue
        name, options = guards[0]
        kind = "forward" if name in FORWARD else "backward" if name in BACKWARD else ""
        if kind:
            found.setdefault(str(options.get("directions")), {}).setdefault(kind, str(condition))
    return [Pair(kinds["forward"], kinds["backward"]) for kinds in found.values() if len(kinds) == 2]


def columns(summary: pd.DataFrame, mark: str) -> list[Column]:
    """(metric, evaluation set) of everything marked `wanted` or `unwanted`."""
    found = summary.loc[summary["mark"] == mark, ["metric", "eval_set"]].drop_duplicates()
    return [(str(metric), str(on)) for metric, on in found.itertuples(index=False)]


def paired_cells(column: Column, conditions: Sequence[str], folder: RunFolder) -> list[np.ndarray] | None:
    """`[S, P]` of each condition over the seeds and prompts that all have; None where one lacks the column."""
    results = folder.results
    part = results[(results["metric"] == column[0]) & (results["eval_set"] == column[1])]
    scores = folder.scores
    scores = scores[(scores["metric"] == column[0]) & (scores["eval_set"] == column[1])]
    modes = {name: list(part.loc[part["condition"] == name, "mode"]) for name in conditions}
    if not all(modes.values()):
        return None
    cells = [cells_of(part, scores, name, modes[name][0]) for name in conditions]
    if len({one.per_response for one in cells}) > 1:
        cells = [cells_of(part, None, name, modes[name][0]) for name in conditions]
    seeds = sorted(set.intersection(*(set(one.table["seed"].dropna()) for one in cells)))
    prompts = sorted(set.intersection(*(set(one.table["id"]) for one in cells)))
    if not seeds or not prompts:
        return None
    return [stats.to_cells(one.table, seeds, prompts) for one in cells]


def _claims(pair: Pair, column: Column, summary: pd.DataFrame, folder: RunFolder) -> Iterator[Claim]:
    arrays = paired_cells(column, [baseline_name(folder.experiment), pair.forward, pair.backward], folder)
    if arrays is None:
        return
    base, forward, backward = arrays
    removed_f, removed_b = stats.difference(base, forward), stats.difference(base, backward)
    gap, ratio = (
        stats.difference(backward, forward),
        stats.interval((base - forward) - 2.0 * (base - backward), contrast=True),
    )
    margin = margin_of(folder.experiment, column[0])
    on = f"{words(column[0])}, {words(column[1])}"
    numbers = {
        "E_forward": _numbers(removed_f),
        "E_backward": _numbers(removed_b),
        "E_forward_minus_E_backward": _numbers(gap),
        "E_forward_minus_2_E_backward": _numbers(ratio),
        "margin": margin,
    }
    said = (
        f"forward removes {_said(removed_f)}, backward {_said(removed_b)}; the difference is {_said(gap)}, "
        f"to lie within ±"
        f"{margin:g} for training dynamics"
    )
    yield Claim(f"What removes {on}?", mechanism(removed_f, removed_b, gap, ratio, margin), f"{said}.", numbers)
    kept = {
        wanted: paired_cells(wanted, [pair.forward, pair.backward], folder) for wanted in columns(summary, "wanted")
    }
    gains = {wanted: stats.difference(two[1], two[0]) for wanted, two in kept.items() if two is not None}
    if gains:
        listed = "; ".join(f"{words(metric)}, {words(on)} {_said(gain, True)}" for (metric, on), gain in gains.items())
        yield Claim(
            f"Does backward trade less than forward for {on}?",
            trade_off(removed_b, list(gains.values())),
            f"Backward removes {_said(removed_b)}; wanted, backward minus forward: {listed}.",
            {f"{metric}/{on}": _numbers(gain) for (metric, on), gain in gains.items()},
        )


def mechanism(forward: Estimate, backward: Estimate, gap: Estimate, ratio: Estimate, margin: float) -> str:
    """The outcome that the rule picks: `training dynamics`, `representational`, `not supported` or
    `undecided`.
    """
    if forward.low is None or backward.low is None:
        return UNDECIDED
    if training_dynamics(forward, backward, gap, margin) == SUPPORTED:
        return "training dynamics"
    if representational(forward, ratio, margin) == SUPPORTED:
        return "representational"
    if _below(forward, margin) and _below(backward, margin):
        return NOT_SUPPORTED
    return UNDECIDED


def training_dynamics(forward: Estimate, backward: Estimate, gap: Estimate, margin: float) -> str:
    """Of "backward removes as much as forward": `supported` where both remove the trait and
    `gap = E(forward) − E(backward)` lies within ±margin; `not supported` where it lies beyond, or where
    neither removes as much as the margin.
    """
    if forward.low is None or backward.low is None or gap.low is None or gap.high is None:
        return UNDECIDED
    if forward.low > 0 and backward.low > 0 and -margin < gap.low and gap.high < margin:
        return SUPPORTED
    if gap.low > margin or gap.high < -margin or (_below(forward, margin) and _below(backward, margin)):
        return NOT_SUPPORTED
    return UNDECIDED


def representational(forward: Estimate, ratio: Estimate, margin: float) -> str:
    """Of "forward removes more than twice what backward does", `ratio = E(forward) − 2·E(backward)`:
    `supported` where forward removes the trait and `ratio` lies above 0; `not supported` where it lies
    below, or where forward does not remove as much as the margin.
    """
    if forward.low is None or ratio.low is None or ratio.high is None:
        return UNDECIDED
    if forward.low > 0 and ratio.low > 0:
        return SUPPORTED
    if ratio.high < 0 or _below(forward, margin):
        return NOT_SUPPORTED
    return UNDECIDED


def _below(estimate: Estimate, margin: float) -> bool:
    return estimate.high is not None and estimate.high < margin


def trade_off(backward: Estimate, gains: list[Estimate]) -> str:
    """`supported`, `not supported` or `undecided`, of "backward removes the trait and keeps more than
    forward".
    """
    if backward.low is None or any(gain.low is None for gain in gains):
        return UNDECIDED
    if any(gain.high is not None and gain.high < 0 for gain in gains) or (
        backward.high is not None and backward.high < 0
    ):
        return NOT_SUPPORTED
    if backward.low > 0 and any(gain.low is not None and gain.low > 0 for gain in gains):
        return SUPPORTED
    return UNDECIDED


def _said(estimate: Estimate, signed: bool = False) -> str:
    return f"{rate(estimate.value, signed)} {span(estimate.low, estimate.high, signed) or '(no interval)'}"


def _numbers(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
