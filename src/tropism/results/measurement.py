"""One measurement: a row of `results.csv`, with what the nine columns leave out.

A measurement that belongs to a curve (the trait along the forget scale, or over relearning steps) has its place on
the curve as a number, `at`. In `results.csv` that number ends the metric's name; nothing has to parse it back.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tropism.errors import RunFolderError
from tropism.stats.estimates import Bounds

RESULT_COLUMNS = ("experiment", "condition", "seed", "mode", "eval_set", "metric", "value", "n", "unscored")
"""The columns of `results.csv`; one row per measurement."""
TYPED_COLUMNS = (*RESULT_COLUMNS, "at", "per_response", "lowest", "highest")
"""The columns of the table that analyses get: `metric` without its number, which is in `at`."""

# Folders from before `at` was written hold its number in the metric's name. Only these families were ever on a curve.
_NUMBERED = re.compile(r"(trait_at_scale|relearned_(?:trait|benign)_\d+_at)_([0-9][0-9.e+-]*)")


@dataclass(frozen=True)
class Measurement:
    """One row of `results.csv`, without the columns that its run knows."""

    eval_set: str
    metric: str
    value: float | None
    """None where nothing could be scored; then `n` is 0, and the value in `results.csv` is empty."""
    n: int
    unscored: int = 0
    mode: str = "full"
    at: float | None = None
    """The place on a curve (a scale, a number of steps); None for a measurement that stands alone."""
    per_response: bool | None = False
    """Whether the value is the mean of the scores in `responses.jsonl`; None in folders that do not say."""
    bounds: Bounds | None = None
    """The least and the largest value that the metric can take, where its scorer knows them."""

    @property
    def name(self) -> str:
        """The metric's name in `results.csv`.

        >>> Measurement("held_out", "trait_at_scale", 0.2, 8, at=0.5).name
        'trait_at_scale_0.5'
        """
        return metric_name(self.metric, self.at)


def metric_name(metric: str, at: float | None) -> str:
    """Return a metric's name in `results.csv`: with its place on a curve, where it has one."""
    return metric if at is None else f"{metric}_{at:g}"


def to_line(measurement: Measurement) -> str:
    """Write a measurement as a line of `measurements.jsonl`; an end that is infinite is written as null."""
    row = asdict(measurement)
    if measurement.bounds is not None:
        row["bounds"] = [end if math.isfinite(end) else None for end in measurement.bounds]
    return json.dumps(row, allow_nan=False) + "\n"


def read_measurements(path: Path) -> list[Measurement]:
    """Read a run's `measurements.jsonl`; raise `RunFolderError` with file and line where it is damaged."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(_from_row(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise RunFolderError(f"{path}:{number}: not a measurement ({error}); run it again to rewrite it") from None
    return found


def _from_row(row: Mapping[str, Any]) -> Measurement:
    held = dict(row)
    if "at" not in held and (numbered := _NUMBERED.fullmatch(held["metric"])):
        held |= {"metric": numbered[1], "at": float(numbered[2])}
    held.setdefault("per_response", None)
    if held.get("bounds") is not None:
        lowest, highest = held["bounds"]
        held["bounds"] = (
            -math.inf if lowest is None else float(lowest),
            math.inf if highest is None else float(highest),
        )
    return Measurement(**held)


def typed_table(rows: Iterable[tuple[str, str, int | None, Measurement]]) -> pd.DataFrame:
    """Build the table with `TYPED_COLUMNS` from (experiment, condition, seed, measurement)."""
    records = []
    for experiment, condition, seed, one in rows:
        # Two columns, because a table has no column of pairs; missing where the metric has no bounds.
        lowest, highest = one.bounds or (None, None)
        records.append({
            "experiment": experiment, "condition": condition, "seed": seed, "mode": one.mode, "eval_set": one.eval_set,
            "metric": one.metric, "value": one.value, "n": one.n, "unscored": one.unscored, "at": one.at,
            "per_response": one.per_response, "lowest": lowest, "highest": highest,
        })  # fmt: skip
    table = pd.DataFrame(records, columns=list(TYPED_COLUMNS))
    types = {
        "seed": "Int64",
        "value": "float64",
        "at": "float64",
        "per_response": "boolean",
        "lowest": "float64",
        "highest": "float64",
    }
    return table.astype(types)


def results_table(typed: pd.DataFrame) -> pd.DataFrame:
    """Return the nine columns of `results.csv`, with the place on a curve as the end of the metric's name."""
    names: list[str] = []
    for metric, at in zip(typed["metric"], typed["at"], strict=True):
        names.append(metric_name(metric, None if pd.isna(at) else at))
    table = typed.loc[:, list(RESULT_COLUMNS)]
    return table if table.empty else table.assign(metric=names)
