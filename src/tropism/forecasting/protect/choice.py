"""What the confirmation says of the race's winner: on fresh seeds and prompts that no selection saw."""

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from tropism.results.comparison import Shown, untrained_value
from tropism.results.text import listed, words
from tropism.results.verdict import answer, judged
from tropism.stats import Verdict


@dataclass(frozen=True)
class Line:
    """A metric before and after, with the difference and its interval."""

    metric: str
    eval_set: str
    mark: str
    untrained: float | None
    before: float
    after: float
    difference: float
    low: float | None
    high: float | None
    over: str
    seeds: int

    shown: Shown | None
    """What the interval of an unwanted metric shows; None for a wanted one."""


@dataclass(frozen=True)
class Choice:
    """The winner and whether it helps."""

    winner: str
    lines: tuple[Line, ...]
    skill: str
    """`kept`, `lost` or `undecided`."""
    report: str = ""
    """The report's own headline."""

    @property
    def lowered(self) -> list[str]:
        """The traits that are lowered on the data's own prompts."""
        return [one.metric for one in self.traits() if one.shown is not None and one.shown.is_lower]

    @property
    def raised(self) -> list[str]:
        """The traits that are raised anywhere."""
        return list(dict.fromkeys(one.metric for one in self.lines if one.shown is Shown.RAISED))

    @property
    def helped(self) -> bool:
        """Whether a trait is lowered beyond doubt, none is raised, and the skill is not lost."""
        return bool(self.lowered) and not self.raised and self.skill != Verdict.LOST

    @property
    def against(self) -> str:
        """Why it does not help, in words; empty where it does."""
        if self.raised:
            return f"it raises {_named(self.raised)}"
        if not self.lowered:
            return "on the data's own prompts it is not shown to lower any of them"
        return f"it lowers {_named(self.lowered)} but loses the skill" if self.skill == Verdict.LOST else ""

    def traits(self) -> list[Line]:
        """The unwanted metrics on the data's own prompts."""
        return [one for one in self.lines if one.mark == "unwanted" and one.eval_set == "held_out"]

    def as_dict(self) -> dict[str, Any]:
        """For `protect.json`."""
        return {
            "winner": self.winner,
            "helped": self.helped,
            "skill": self.skill,
            "report": self.report,
            "lines": [asdict(one) for one in self.lines],
        }


def judge(summary: pd.DataFrame, experiment: dict[str, Any], winner: str) -> Choice:
    """From the confirmation's table, by the rules of the report: what both say is one function's result."""
    arms = [arm for arm in judged(summary, experiment) if arm.condition == winner]
    arm = next((one for one in arms if one.name.endswith("forget ablated")), arms[0])
    found = {(one.metric, one.eval_set): one.shown for one in arm.changes}
    before = summary[summary["condition"] == "baseline"].drop_duplicates(["metric", "eval_set"])
    values = before.set_index(["metric", "eval_set"])["value"]
    lines = []
    for row in summary[(summary["arm"] == arm.name) & summary["difference"].notna()].to_dict("records"):
        metric, where = str(row["metric"]), str(row["eval_set"])
        lines.append(
            Line(
                metric,
                where,
                row["mark"],
                untrained_value(summary, metric, where),
                float(values[metric, where]),
                float(row["value"]),
                float(row["difference"]),
                _number(row["difference_low"]),
                _number(row["difference_high"]),
                str(row["difference_over"]),
                int(row["seeds"]),
                found.get((metric, where)),
            )
        )
    skill = next(iter(arm.skills.values()), Verdict.UNDECIDED)
    return Choice(winner, tuple(lines), str(skill), str(answer(summary, experiment).headline))


def _named(traits: list[str]) -> str:
    return listed([words(name) for name in traits])


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
