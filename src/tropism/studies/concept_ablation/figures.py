"""Figure of a concept-ablation study: what is left along the directions inside the trained models, site by site."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator

from tropism.reports.figures import style
from tropism.results.text import words

NAME = "concept_ablation_inside"
ROWS = (("variance_ratio", "variance, ratio to base"), ("cosine", "cosine of gradient and subspace"))
NEEDED = ("condition", "directions", "site", "variance_ratio", "cosine", "null_cosine")


def draw(table: pd.DataFrame, guarded: Mapping[str, str], shown: Sequence[str], folder: Path) -> str:
    """Draw two rows of panels, a column per directions, a line per condition; return the figure's name.

    Args:
        table: a row per run, directions and site, with the columns `NEEDED`; seeds are averaged.
        guarded: condition → the directions that its guard is on; it is drawn in that panel only.
        shown: the conditions, in the order of their marks; the first is the baseline.
        folder: where SVG, PNG and PDF go.

    Raises `RunFolderError` where the table has no rows or lacks a column.
    """
    style.check(table, NEEDED, NAME)
    names = list(dict.fromkeys(map(str, table["directions"])))
    marks = style.marks(list(shown), plain=list(shown[:1]))
    with style.figure(max(4.6, 1.2 + 2.2 * len(names)), 5.6) as drawn:
        panels = drawn.subplots(len(ROWS), len(names), squeeze=False, sharex="col", sharey="row")
        for column, name in enumerate(names):
            part = table[table["directions"] == name]
            sites = list(dict.fromkeys(part["site"]))
            # A guard is drawn where it acts; the baseline and others without one are drawn in every panel.
            here = {}
            for condition in shown:
                if guarded.get(condition, name) == name:
                    here[condition] = part[part["condition"] == condition]
            for row, (measured, label) in enumerate(ROWS):
                axes = panels[row, column]
                for condition, rows in here.items():
                    if not rows.empty:
                        values = rows.groupby("site")[measured].mean().reindex(sites)
                        _line(axes, values, marks[condition], words(condition))
                if measured == "variance_ratio":
                    _ratio_axis(axes)
                else:
                    chance = float(part["null_cosine"].iloc[0])
                    axes.axhline(chance, color=style.MUTED, linewidth=0.8, linestyle=":")
                style.titles(axes, "", label if column == 0 else "", words(name) if row == 0 else "")
            panels[-1, column].set_xticks(range(len(sites)), [site.removeprefix("resid_post.") for site in sites])
            panels[-1, column].set_xlabel("site: after block")
        handles = {}
        for axes in panels.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles[label] = handle
        drawn.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=3)
        style.save(drawn, folder, NAME)
    return NAME


def _line(axes: Axes, values: "pd.Series[float]", mark: style.Mark, label: str) -> None:
    places = range(len(values))
    axes.plot(
        places, values, color=mark.colour, linestyle=mark.line, marker=mark.marker, markersize=4.5, label=label
    )  # fmt: skip


def _ratio_axis(axes: Axes) -> None:
    """A logarithmic axis with plain numbers and a dotted line at 1, where the variance is the base's."""
    axes.axhline(1.0, color=style.MUTED, linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
