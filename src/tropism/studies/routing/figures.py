"""Figures of a routing study: modes, the forget scale, relearning, label recall, and the adapters' geometry.

Each takes a tidy table whose `low` and `high` are the ends of an interval, or NaN where there is none, and writes SVG,
PNG and PDF of that name into a folder. Each returns the SVG.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tropism.errors import RunFolderError
from tropism.reports.figures import style
from tropism.results.text import words

MODE_MARKS = {
    "full": style.Mark(style.INK, "s", "-"),
    "forget_ablated": style.Mark(style.COLOURS[0], "o", "-"),
    "retain_ablated": style.Mark(style.COLOURS[1], "D", "-", hollow=True),
}
"""The same mark for a mode in every figure."""
GEOMETRY_PANELS = {
    "cosine": "cosine of the two ΔW",
    "row_overlap": "overlap of input spaces",
    "column_overlap": "overlap of output spaces",
}


def draw_trait(table: pd.DataFrame, metric: str, folder: Path, name: str) -> str:
    """Draw one metric, arms downwards, a mark per mode: `arm, mode, value, low, high`; narrow enough to be beside text."""
    style.check(table, ("arm", "mode", "value", "low", "high"), name)
    arms = list(dict.fromkeys(table["arm"]))
    with style.figure(4.7, 0.9 + 0.3 * len(arms)) as drawn:
        axes = drawn.add_subplot()
        for index, (mode, mark) in enumerate(MODE_MARKS.items()):
            chosen = table[table["mode"] == mode]
            y = [arms.index(arm) + 0.22 * (index - 1) for arm in chosen["arm"]]
            _points(axes, y, chosen, mark, words(mode), down=True)
        axes.set_yticks(range(len(arms)), [words(arm) for arm in arms])
        axes.invert_yaxis()
        style.titles(axes, words(metric), "")
        handles, labels = axes.get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper left", ncols=3)
        return style.save(drawn, folder, name)


def draw_modes(table: pd.DataFrame, metrics: Sequence[str], folder: Path, name: str) -> str:
    """Draw a panel per metric, arms across, a mark per mode: `arm, mode, metric, value, low, high`."""
    style.check(table, ("arm", "mode", "metric", "value", "low", "high"), name)
    arms = list(dict.fromkeys(table["arm"]))
    with style.figure(1.2 + 0.75 * len(arms), 2.3 * len(metrics) + 0.6) as drawn:
        panels = drawn.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
        for axes, metric in zip(panels, metrics, strict=True):
            rows = table[table["metric"] == metric]
            if rows.empty:
                raise RunFolderError(
                    f"figure {name}: the table must hold metric {metric!r}, found {style.names(table['metric'])}"
                )
            for index, (mode, mark) in enumerate(MODE_MARKS.items()):
                chosen = rows[rows["mode"] == mode]
                x = [arms.index(arm) + 0.2 * (index - 1) for arm in chosen["arm"]]
                _points(axes, x, chosen, mark, words(mode))
            style.titles(axes, "", words(metric))
        panels[-1].set_xticks(range(len(arms)), [words(arm) for arm in arms])
        if len(arms) > 4:
            panels[-1].tick_params(axis="x", rotation=30)
        handles, labels = panels[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper left", ncols=3)
        return style.save(drawn, folder, name)


def draw_curves(
    table: pd.DataFrame, x: str, label: str, y: str, folder: Path, name: str, *, steps: bool = False
) -> str:
    """Draw a line per arm over `x`: `arm, x, value, low, high`.

    For the forget scale (`x="scale"`), relearning (`x="step"`, with `steps=True` for a logarithmic axis from 0) and
    label recall (`x="recall"`).
    """
    style.check(table, ("arm", x, "value", "low", "high"), name)
    marks = style.marks(list(dict.fromkeys(table["arm"])))
    with style.figure(4.7, 3.2) as drawn:
        axes = drawn.add_subplot()
        for arm, rows in table.sort_values(x, kind="stable").groupby("arm", sort=False):
            mark = marks[str(arm)]
            axes.plot(
                rows[x],
                rows["value"],
                color=mark.colour,
                linestyle=mark.line,
                marker=mark.marker,
                markersize=4,
                label=words(str(arm)),
            )
            axes.fill_between(rows[x], rows["low"], rows["high"], color=mark.colour, alpha=0.15, linewidth=0)
        if steps:
            axes.set_xscale("symlog", base=2, linthresh=1)
            ticks = sorted(set(table[x]))
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        style.titles(axes, label, y)
        if len(marks) > 1:
            axes.legend()
        return style.save(drawn, folder, name)


def draw_geometry(geometry: pd.DataFrame, folder: Path, name: str) -> str:
    """Draw cosine and overlaps by layer and module, each minus the mean of its null.

    A dot marks a value outside the null's central 95 %. `geometry` is the table of `lora_geometry`. Weights outside any
    block (`layer` missing) are left out; cells of modules that a layer lacks, or where an adapter is zero, stay blank.
    """
    rows = geometry.dropna(subset=["layer"])
    if rows.empty:
        raise RunFolderError(f"figure {name}: the geometry must have at least one weight inside a block, found none")
    modules = list(dict.fromkeys(rows["module"]))
    layers = sorted(int(layer) for layer in set(rows["layer"]))
    with style.figure(1.2 + 3 * (0.6 + 0.28 * len(modules)), 1.5 + 0.14 * len(layers)) as drawn:
        panels = drawn.subplots(1, len(GEOMETRY_PANELS), sharey=True)
        for axes, (key, title) in zip(panels, GEOMETRY_PANELS.items(), strict=True):
            grid = np.full((len(layers), len(modules)), np.nan)
            outside = []
            for row in rows.to_dict("records"):
                at = layers.index(int(row["layer"])), modules.index(row["module"])
                grid[at] = row[key] - row[f"{key}_null"]
                if row[key] < row[f"{key}_low"] or row[key] > row[f"{key}_high"]:
                    outside.append(at)
            known = np.abs(grid[~np.isnan(grid)])
            largest = float(known.max()) if known.size and known.max() > 0 else 1.0
            image = axes.imshow(grid, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", origin="lower")
            axes.plot([j for _, j in outside], [i for i, _ in outside], ".", color=style.INK, markersize=2)
            axes.grid(visible=False)
            axes.set_xticks(range(len(modules)), modules, rotation=90)
            style.titles(axes, "", "", title)
            drawn.colorbar(image, ax=axes, label="above its null", shrink=0.9)
        step = max(1, len(layers) // 10)
        panels[0].set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
        panels[0].set_ylabel("layer")
        return style.save(drawn, folder, name)


def _points(
    axes: Axes, places: Sequence[float], rows: pd.DataFrame, mark: style.Mark, label: str, *, down: bool = False
) -> None:
    """Marks with intervals at `places` across, values up; with `down` the other way round."""
    known = rows["low"].notna() & rows["high"].notna()
    for at, low, high, has_interval in zip(places, rows["low"], rows["high"], known, strict=True):
        if has_interval:
            ends = _turned([at, at], [low, high], down)
            axes.plot(*ends, color=mark.colour, linewidth=1.2, solid_capstyle="butt")
    axes.plot(
        *_turned(places, rows["value"], down),
        linestyle="none",
        marker=mark.marker,
        color=mark.colour,
        label=label,
        markersize=5.5,
        markerfacecolor="white" if mark.hollow else mark.colour,
    )


def _turned(place: object, value: object, down: bool) -> tuple[Any, Any]:
    """(x, y) of a value at a place across, or with `down` of a place downwards."""
    return (value, place) if down else (place, value)
