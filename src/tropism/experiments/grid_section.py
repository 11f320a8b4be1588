"""The grid's own part of a report: a row for each cell with what every metric came to, and the distance to the condition it
was made of.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from tropism.experiments.file.spec import ExperimentSpec
from tropism.results.section import Section, Table


def grid_section(experiment: ExperimentSpec, results: pd.DataFrame) -> Section | None:
    """Return the section `grid`; None where the file has no grid. `results` are measurements that have a value."""
    cells = {name: spec.cell for name, spec in experiment.conditions.items() if spec.cell is not None}
    if not cells:
        return None
    keys = list(experiment.grid)
    tables = []
    for (mode, on, metric), measured in results.groupby(["mode", "eval_set", "metric"], sort=False):
        values = {name: list(group["value"]) for name, group in measured.groupby("condition")}
        rows = [
            [
                cell.of,
                *(_shown(cell.at.get(key)) for key in keys),
                *_summary(values.get(name, ()), values.get(cell.of, ())),
            ]
            for name, cell in cells.items()
        ]
        where = "" if mode == "full" else f", {mode}"
        tables.append(Table(f"{metric} on {on}{where}", ["condition", *keys, "mean", "sd", "seeds", "difference"], rows,
                            "difference: to the condition that the cell was made of"))  # fmt: skip
    done = sum(any(results["condition"] == name) for name in cells)
    return Section(
        "grid", "Grid", f"{len(cells)} cells of {', '.join(keys)}, of which {done} are measured.", tables=tables,
        notes=["A cell is chosen on the sets that are shown here; report what was chosen on another set, or on further seeds."],
    )  # fmt: skip


def _summary(values: Sequence[float], of: Sequence[float]) -> list[Any]:
    """Mean, standard deviation over seeds, their number, and the difference of means; None where there is nothing."""
    if not values:
        return [None, None, 0, None]
    mean = statistics.fmean(values)
    sd = statistics.stdev(values) if len(values) > 1 else None
    return [mean, sd, len(values), mean - statistics.fmean(of) if of else None]


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else str(value)
