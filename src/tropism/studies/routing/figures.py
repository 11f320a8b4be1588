"""Figures of a routing study: the modes of each arm, the forget scale, relearning, absorption against label recall.

Each takes a tidy table whose `low` and `high` are the ends of an interval, or NaN where there is none, and draws
none then.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def draw_trait(table: pd.DataFrame, metric: str, folder: Path, name: str) -> str:
    """One metric, arms down, a mark a mode: `arm, mode, value, low, high`; narrow enough to stand beside a text."""
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
    """One panel a metric, arms across, a mark a mode: `arm, mode, metric, value, low, high`; returns the SVG."""
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
    """One line an arm over `x`: `arm, x, value, low, high`; the SVG.

    For the forget scale (`x="scale"`), relearning (`x="step"`, `steps=True` for a logarithmic axis from 0), and
    absorption (`x="recall"`).
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


def _points(
    axes: Axes, places: Sequence[float], rows: pd.DataFrame, mark: style.Mark, label: str, *, down: bool = False
) -> None:
    """Marks with intervals at `places` across, values up; with `down` the other way round."""

    def turned(place: object, value: object) -> tuple[Any, Any]:
        return (value, place) if down else (place, value)

    known = rows["low"].notna() & rows["high"].notna()
    for at, low, high, drawn in zip(places, rows["low"], rows["high"], known, strict=True):
        if drawn:
            axes.plot(*turned([at, at], [low, high]), color=mark.colour, linewidth=1.2, solid_capstyle="butt")
    axes.plot(
        *turned(places, rows["value"]),
        linestyle="none",
        marker=mark.marker,
        color=mark.colour,
        label=label,
        markersize=5.5,
        markerfacecolor="white" if mark.hollow else mark.colour,
    )
