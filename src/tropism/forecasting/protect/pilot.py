"""The pilot: does the baseline learn the traits and the skill at all? If not, nothing could be decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from tropism.names import BASE
from tropism.results.text import listed, rate, words

LEAST_RISE = 0.05
"""A trait that rises by less in the pilot is not learned at this budget."""
LEAST_SKILL = 0.02


@dataclass(frozen=True)
class Pilot:
    """What the baseline learned, of the traits on the data's held-out prompts and of the skill.

    A trait's rise is counted from the untrained model or from what the rows *without* the trait score, whichever is higher:
    with a graded scorer the plain rows' own style moves the score (short sentences have a larger share of capitals).
    """

    rises: dict[str, float]
    skill: float

    @property
    def learned(self) -> list[str]:
        """The traits that it learned."""
        return [name for name, rise in self.rises.items() if rise >= LEAST_RISE]

    def failed(self, steps: int) -> str:
        """Why nothing can be decided, and what to change; empty where the race may begin."""
        change = f"train longer (--steps {2 * steps}) or at a higher rate (--recipe with learning_rate)"
        if not self.learned:
            said = listed([f"{words(name)} {rate(rise, signed=True)}" for name, rise in self.rises.items()])
            return (
                f"protect: in {steps} steps the unguarded baseline learned none of the traits ({said}), so no guard could be "
                f"told from none; {change}"
            )
        if self.skill < LEAST_SKILL:
            return (
                f"protect: in {steps} steps the unguarded baseline learned no skill ({rate(self.skill, signed=True)}), so a "
                f"guard's price could not be told; {change}, or name another --wanted metric"
            )
        return ""


def judge(summary: pd.DataFrame, traits: Sequence[str], clean: Mapping[str, float]) -> Pilot:
    """From the table of the untrained model and the baseline on the development prompts.

    `clean`: the mean score, by trait, of the data's rows that do not show it.
    """
    rises = {name: _rise(summary, name, "held_out", clean.get(name, 0.0)) for name in traits}
    return Pilot(rises, _rise(summary, "skill", "skill_rows"))


def _rise(summary: pd.DataFrame, metric: str, where: str, least: float | None = None) -> float:
    part = summary[(summary["metric"] == metric) & (summary["eval_set"] == where)].set_index("condition")["value"]
    start = float(part[BASE])
    return float(part["baseline"]) - (start if least is None else max(start, least))
