"""Figure of a refusal study: what each condition keeps of refusing, over the attack alone."""

from pathlib import Path

import pandas as pd

from tropism.reports.figures import style
from tropism.results.text import words

COLUMNS = ("measure", "condition", "value", "low", "high")


def draw(table: pd.DataFrame, start: str, folder: Path, name: str) -> str:
    """Draw one panel per measure, conditions downwards, 0 the attack alone; return the SVG.

    Args:
        table: `measure, condition, value, low, high`; the last two are NaN where there is no interval.
        start: the condition before the attack, whose row shows all that could be kept.
        folder: where SVG, PNG and PDF go.
        name: the figure's file name without extension.
    """
    style.check(table, COLUMNS, name)
    conditions = list(dict.fromkeys(table["condition"]))
    measures = list(dict.fromkeys(table["measure"]))
    with style.figure(4.7, 0.8 + 0.28 * len(conditions)) as drawn:
        panels = drawn.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, measures, strict=True):
            axes.axvline(0, color=style.MUTED, linewidth=1.0)
            for row in table[table["measure"] == measure].itertuples():
                y, reference = conditions.index(row.condition), row.condition == start
                colour = style.INK if reference else style.COLOURS[0]
                axes.plot([row.low, row.high], [y, y], color=colour, linewidth=1.2, solid_capstyle="butt")
                axes.plot(row.value, y, marker="s" if reference else "o", color=colour, markersize=5, linestyle="none")
            style.titles(axes, measure, "")
        names = ["before the attack" if condition == start else words(condition) for condition in conditions]
        panels[0].set_yticks(range(len(conditions)), names)
        panels[0].invert_yaxis()
        return style.save(drawn, folder, name)
