"""The grid's own part of a report: a row for each cell with what every metric came to, and the distance to the condition it
was made of; a heat map for each metric; and, where the file searches, what was chosen and how it does on the test set.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tropism.experiments import grid_figure
from tropism.experiments.file.search import better
from tropism.experiments.file.spec import CellSpec, ExperimentSpec, SearchSpec
from tropism.reports.figures import style
from tropism.results.section import Figure, Section, Table

ON_OTHERS = (
    "A cell is chosen on the sets that are shown here; report what was chosen on another set, or on further seeds "
    "(`search:` does)."
)


def grid_section(experiment: ExperimentSpec, results: pd.DataFrame, figures: Path | None = None) -> Section | None:
    """Return the section `grid`; None where the file has no grid. `results` are measurements that have a value.

    Heat maps are drawn into the folder `figures`, where it is given.
    """
    cells = {name: spec.cell for name, spec in experiment.conditions.items() if spec.cell is not None}
    if not cells:
        return None
    keys = list(experiment.grid)
    tables, drawn, notes = [], list[Figure](), [ON_OTHERS]
    if experiment.search is not None:
        chosen, note = _search(experiment, experiment.search, cells, results)
        tables += [chosen]
        notes = [note]
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
        means = {name: statistics.fmean(values[name]) for name in cells if name in values}
        figure = f"grid-{style.safe_name(str(metric))}-{style.safe_name(str(on))}" + (
            "" if mode == "full" else f"-{mode}"
        )
        if figures is not None and grid_figure.draw(cells, means, experiment.grid, figures, figure):
            drawn.append(Figure(figure, f"{metric} on {on}{where}: the mean of each cell over its seeds"))
    done = sum(any(results["condition"] == name) for name in cells)
    return Section(
        "grid", "Grid", f"{len(cells)} cells of {', '.join(keys)}, of which {done} are measured.", tables=tables, figures=drawn,
        notes=notes,
    )  # fmt: skip


def _search(
    experiment: ExperimentSpec, search: SearchSpec, cells: Mapping[str, CellSpec], results: pd.DataFrame
) -> tuple[Table, str]:
    """Return what was chosen of each condition, by its mean on the development set, and how that does on the test set."""
    of_metric = results[(results["metric"] == search.metric) & (results["mode"] == "full")]
    sign = 1 if better(experiment, search) == "higher" else -1
    on = {
        name: {
            cell: list(group["value"]) for cell, group in of_metric[of_metric["eval_set"] == name].groupby("condition")
        }
        for name in (search.on, search.report)
    }
    chosen, missing = dict[str, str](), 0
    for name, cell in cells.items():
        if len(on[search.on].get(name, ())) < len(experiment.seeds):
            missing += 1
            continue
        best = chosen.get(cell.of)
        # The first of equals: the order of the file, and no chance, decides between them.
        if best is None or sign * statistics.fmean(on[search.on][name]) > sign * statistics.fmean(on[search.on][best]):
            chosen[cell.of] = name
    baseline = on[search.report].get(chosen.get(experiment.baseline, ""), ())
    rows = [
        [
            of,
            *(_shown(cells[name].at.get(key)) for key in experiment.grid),
            statistics.fmean(on[search.on][name]),
            *_summary(on[search.report].get(name, ()), baseline),
        ]
        for of, name in chosen.items()
    ]
    columns = ["condition", *experiment.grid, f"on {search.on}", f"on {search.report}", "sd", "seeds", "difference"]
    table = Table(
        f"chosen by {search.metric} on {search.on}, reported on {search.report}", columns, rows,
        "difference: on the test set, to what was chosen of the baseline in the same way",
    )  # fmt: skip
    note = (
        f"Of each condition the cell with the {'highest' if sign > 0 else 'lowest'} mean {search.metric} on {search.on} is "
        f"chosen, among cells that every seed has measured; the figure to report is that on {search.report}, which took no part."
    )
    return table, note + (
        f" {missing} cells are not measured with every seed yet, and were not considered." * bool(missing)
    )


def _summary(values: Sequence[float], of: Sequence[float]) -> list[Any]:
    """Mean, standard deviation over seeds, their number, and the difference of means; None where there is nothing."""
    if not values:
        return [None, None, 0, None]
    mean = statistics.fmean(values)
    sd = statistics.stdev(values) if len(values) > 1 else None
    return [mean, sd, len(values), mean - statistics.fmean(of) if of else None]


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else str(value)
