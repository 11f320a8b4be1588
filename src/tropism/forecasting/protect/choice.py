"""What the confirmation says of the race's winner: on fresh seeds and prompts that no selection saw."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from tropism.names import BASE
from tropism.stats import Verdict

MUCH = 0.5
"""The share of a trait that has to be gone for "kept out"."""


@dataclass(frozen=True)
class Line:
    """A metric before and after, with the difference and its interval."""

    metric: str
    eval_set: str
    mark: str
    untrained: float
    before: float
    after: float
    difference: float
    low: float | None
    high: float | None
    over: str
    seeds: int

    @property
    def lowered(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high is not None and self.high < 0

    @property
    def out(self) -> bool:
        """Whether at least half of the baseline's rise is gone, beyond doubt that some is."""
        return self.lowered and self.after - self.untrained <= (1 - MUCH) * (self.before - self.untrained)


@dataclass(frozen=True)
class Choice:
    """The winner and whether it helps."""

    winner: str
    lines: tuple[Line, ...]
    skill: str
    """`kept`, `lost` or `undecided`."""

    @property
    def lowered(self) -> list[str]:
        """The traits that are lowered on the data's own prompts."""
        return [one.metric for one in self._traits() if one.lowered]

    @property
    def helped(self) -> bool:
        """Whether a trait is lowered beyond doubt, none is raised, and the skill is not lost."""
        raised = any(one.low is not None and one.low > 0 for one in self.lines if one.mark == "unwanted")
        return bool(self.lowered) and not raised and self.skill != Verdict.LOST

    def _traits(self) -> list[Line]:
        return [one for one in self.lines if one.mark == "unwanted" and one.eval_set == "held_out"]

    def as_dict(self) -> dict[str, Any]:
        """For `protect.json`."""
        return {
            "winner": self.winner,
            "helped": self.helped,
            "skill": self.skill,
            "lines": [asdict(one) for one in self.lines],
        }


def judge(summary: pd.DataFrame, winner: str) -> Choice:
    """From the confirmation's table."""
    by_metric = summary.groupby(["metric", "eval_set"], sort=False)
    lines, skill = [], str(Verdict.UNDECIDED)
    for (metric, where), part in by_metric:
        chosen = part[part["condition"] == winner]
        kept = chosen[chosen["mode"] == "forget_ablated"]
        row: Mapping[Any, Any] = (chosen if kept.empty else kept).iloc[0].to_dict()
        values = part.drop_duplicates("condition").set_index("condition")["value"]
        lines.append(
            Line(
                str(metric),
                str(where),
                row["mark"],
                float(values[BASE]),
                float(values["baseline"]),
                float(row["value"]),
                float(row["difference"]),
                _number(row["difference_low"]),
                _number(row["difference_high"]),
                str(row["difference_over"]),
                int(row["seeds"]),
            )
        )
        if row["mark"] == "wanted":
            skill = row["kept"]
    return Choice(winner, tuple(lines), skill)


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
