"""The small drawing in a cell of the table: a value, its interval and the baseline on the column's common scale."""

from dataclasses import dataclass

import pandas as pd

WIDTH = 110.0
"""Width of the drawing in its own units; the page scales it."""


@dataclass(frozen=True)
class Strip:
    """Positions in 0..WIDTH."""

    value: float
    low: float | None
    high: float | None
    baseline: float | None


def strips(summary: pd.DataFrame, baseline: str) -> dict[tuple[str, str, str], Strip]:
    """Return (arm, metric, evaluation set) → its strip; a column whose values are all the same has none."""
    found: dict[tuple[str, str, str], Strip] = {}
    for (metric, on), column in summary.groupby(["metric", "eval_set"], sort=False):
        ends = pd.concat([column["value"], column["low"], column["high"]]).astype(float).dropna()
        left, right = float(ends.min()), float(ends.max())
        # Rates share the scale from 0 to 1, so that columns can be compared by eye.
        if left >= 0.0 and right <= 1.0 and column["mark"].iloc[0]:
            left, right = 0.0, 1.0
        if right <= left:
            continue
        reference = column.loc[column["condition"] == baseline, "value"]
        at_baseline = None if reference.empty else _at(float(reference.iloc[0]), left, right)
        for row in column.to_dict("records"):
            ends_known = pd.notna(row["low"]) and pd.notna(row["high"])
            found[str(row["arm"]), str(metric), str(on)] = Strip(
                _at(row["value"], left, right),
                _at(row["low"], left, right) if ends_known else None,
                _at(row["high"], left, right) if ends_known else None,
                at_baseline,
            )
    return found


def _at(value: float, left: float, right: float) -> float:
    return round(4.0 + (WIDTH - 8.0) * (value - left) / (right - left), 1)
