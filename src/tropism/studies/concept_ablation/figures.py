"""Figure of a concept-ablation study: what is left along the directions inside the trained models, site by site."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.ticker import FormatStrFormatter, LogLocator

from tropism.errors import RunFolderError
from tropism.reports.figures import style
from tropism.results.text import words

NAME = "concept_ablation_inside"
ROWS = (("variance_ratio", "variance, ratio to base"), ("cosine", "cosine of gradient and subspace"))
NEEDED = ("condition", "directions", "site", "variance_ratio", "cosine", "null_cosine")


def draw(table: pd.DataFrame, guarded: Mapping[str, str], shown: Sequence[str], folder: Path) -> str:
    """Two rows of panels, a column for each directions, a line for each condition; returns the figure's name.

    Args:
        table: one row a run, directions and site, columns `NEEDED`; seeds are averaged.
        guarded: condition → the directions that its guard is on; it is drawn in that panel alone.
        shown: the conditions, in the order of their marks; the first is the baseline.
        folder: where SVG, PNG and PDF go.

    Raises `RunFolderError` where the table has no rows or lacks a column.
    """
    missing = [column for column in NEEDED if column not in table.columns]
    if missing or table.empty:
        raise RunFolderError(
            f"figure {NAME}: the table must have rows and the columns {', '.join(NEEDED)}, found {len(table)} rows and "
            f"lacks {', '.join(missing) or 'none'}"
        )
    names = list(dict.fromkeys(map(str, table["directions"])))
    marks = style.marks(list(shown), plain=list(shown[:1]))
    with style.figure(max(4.6, 1.2 + 2.2 * len(names)), 5.6) as drawn:
        panels = drawn.subplots(len(ROWS), len(names), squeeze=False, sharex="col", sharey="row")
        for column, name in enumerate(names):
            part = table[table["directions"] == name]
            sites = list(dict.fromkeys(part["site"]))
            for row, (measured, label) in enumerate(ROWS):
                axes = panels[row, column]
                for condition in shown:
                    rows = part[part["condition"] == condition]
                    if guarded.get(condition, name) != name or rows.empty:
                        continue
                    mine = rows.groupby("site")[measured].mean().reindex(sites)
                    mark = marks[condition]
                    axes.plot(
                        range(len(sites)), mine, color=mark.colour, linestyle=mark.line, marker=mark.marker,
                        markersize=4.5, label=words(condition),
                    )  # fmt: skip
                if measured == "variance_ratio":
                    axes.axhline(1.0, color=style.MUTED, linewidth=0.8, linestyle=":")
                    axes.set_yscale("log")
                    for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                        ticks(FormatStrFormatter("%g"))
                    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
                else:
                    chance = float(part["null_cosine"].iloc[0])
                    axes.axhline(chance, color=style.MUTED, linewidth=0.8, linestyle=":")
                style.titles(axes, "", label if column == 0 else "", words(name) if row == 0 else "")
            panels[-1, column].set_xticks(range(len(sites)), [site.removeprefix("resid_post.") for site in sites])
            panels[-1, column].set_xlabel("site: after block")
        handles = {
            label: handle
            for axes in panels.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        drawn.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=3)
        style.save(drawn, folder, NAME)
    return NAME
