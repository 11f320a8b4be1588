"""The race: candidates on the development prompts, halved after every round, one more seed in each.

A candidate's standing is the share of the baseline's rise that is gone, mean over traits, on the data's own prompts; one
that loses more of the skill than the margin stands behind all that do not. Controls run in the first round only: they are
what a winner must beat, and cannot win.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from tropism.names import BASE

RoundOf = Callable[[Sequence[str], int], pd.DataFrame]
"""Runs conditions with that many seeds and returns the summary table."""


@dataclass(frozen=True)
class Standing:
    """Where a candidate stands after a round."""

    name: str
    removed: float
    """The share of the baseline's rise over the untrained model that is gone; at most 1: below it is no better."""
    skill: float
    """The change of the wanted metric to the baseline."""
    seeds: int
    control: bool


def race(
    guards: Sequence[str], controls: Sequence[str], traits: Sequence[str], margin: float, run: RoundOf
) -> list[list[Standing]]:
    """Return the standings of every round, the best first; the last round's first guard is the winner."""
    rounds: list[list[Standing]] = []
    left, seeds = list(guards), 1
    while True:
        asked = ["baseline", *left, *(controls if not rounds else ())]
        summary = run(asked, seeds)
        found = [
            standing(summary, name, traits, seeds, name in controls) for name in asked[1:] if finished(summary, name)
        ]
        found.sort(key=lambda one: (one.control, one.skill < -margin, -one.removed))
        rounds.append(found)
        still = [one.name for one in found if not one.control]
        if len(still) <= 2:
            return rounds
        left, seeds = still[: len(still) // 2], seeds + 1


def finished(summary: pd.DataFrame, name: str) -> bool:
    """Whether a condition has a value: a run that failed has none, and is said in the report."""
    return bool((summary["condition"] == name).any())


def standing(summary: pd.DataFrame, name: str, traits: Sequence[str], seeds: int, control: bool) -> Standing:
    """A condition's standing, from the table."""
    removed = []
    for trait in traits:
        before, after, untrained = (_value(summary, one, trait, "held_out") for one in ("baseline", name, BASE))
        removed.append(min(1.0, (before - after) / max(before - untrained, 1e-9)))
    skill = _value(summary, name, "skill", "skill_rows") - _value(summary, "baseline", "skill", "skill_rows")
    return Standing(name, sum(removed) / len(removed), skill, seeds, control)


def _value(summary: pd.DataFrame, condition: str, metric: str, where: str) -> float:
    part = summary[(summary["condition"] == condition) & (summary["metric"] == metric) & (summary["eval_set"] == where)]
    # Of two adapters the one that is kept is judged.
    kept = part[part["mode"] == "forget_ablated"]
    return float((part if kept.empty or condition == "baseline" else kept)["value"].iloc[0])
