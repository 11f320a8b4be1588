"""What the interval of one unwanted metric shows: the one rule that the report, the card and `--until decided` read."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pandas as pd

from tropism.names import BASE
from tropism.stats import EXACT

LEVEL = 0.05
MUCH = 0.5
"""The share of an effect from which a guard keeps the trait out, and a control matches a guard."""


class Shown(StrEnum):
    """What the interval of a difference to the baseline shows."""

    OUT = "kept out"
    LOWERED = "lowered"
    RAISED = "raised"
    OPEN = "not shown"
    """The interval holds 0, or does not survive Holm's correction."""
    UNDECIDED = "undecided"
    """There is no interval."""

    @property
    def is_lower(self) -> bool:
        """Whether the metric is lower beyond doubt."""
        return self in (Shown.OUT, Shown.LOWERED)


def shown(row: Mapping[Any, Any], untrained: float | None) -> Shown:
    """Return what a row of the summary table shows of an unwanted metric.

    *Lowered*: the whole interval lies below 0 and survives Holm's correction. *Kept out*: at least half of the baseline's value
    is gone besides, and the baseline had learned it, since what never came in is not kept out. *Raised*: the whole interval lies
    above 0.

    Args:
        row: with `value`, `difference`, `difference_low`, `difference_high`, `difference_over`, `p_holm`.
        untrained: the untrained model's value; None where it was not measured.
    """
    low, high = row["difference_low"], row["difference_high"]
    if pd.isna(low) or pd.isna(high):
        return Shown.UNDECIDED
    if low > 0:
        return Shown.RAISED
    if not (high < 0 and survives(row)):
        return Shown.OPEN
    # The baseline over the same seeds and prompts, since the difference is paired.
    before = float(row["value"]) - float(row["difference"])
    learned = before > 0 and (untrained is None or before > untrained)
    return Shown.OUT if learned and -float(row["difference"]) >= MUCH * before else Shown.LOWERED


def survives(row: Mapping[Any, Any]) -> bool:
    """Whether a difference survives the correction for several guards; an exact interval has no p-value to adjust."""
    return bool(row["difference_over"] == EXACT or (not pd.isna(row["p_holm"]) and row["p_holm"] < LEVEL))


def untrained_value(summary: pd.DataFrame, metric: str, eval_set: str) -> float | None:
    """Return the untrained model's value; None where it was not measured."""
    of_base = summary["condition"] == BASE
    found = summary.loc[of_base & (summary["metric"] == metric) & (summary["eval_set"] == eval_set), "value"].dropna()
    return None if found.empty else float(found.iloc[0])
