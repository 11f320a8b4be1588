"""The grid's heat maps: for a metric, a panel for each condition, a square for each cell."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tropism.experiments.file.spec import CellSpec
from tropism.reports.figures import style

MOST_PANELS = 12
"""Panels of a figure; with more there is no room to read one, and the table has every cell."""


def draw(
    cells: Mapping[str, CellSpec],
    means: Mapping[str, float],
    grid: Mapping[str, Sequence[Any]],
    folder: Path,
    name: str,
) -> bool:
    """Draw the mean of every cell that is measured; return whether there was anything to draw.

    Args:
        cells: condition → which cell it is.
        means: condition → its mean over the seeds.
        grid: option → its values. The first two of a condition's options span a panel; of further ones there is a
            panel for each combination.
        folder: where SVG, PNG and PDF go.
        name: the figure's file name without extension.
    """
    panels = _panels({cell: spec for cell, spec in cells.items() if cell in means}, grid)
    if not panels or len(panels) > MOST_PANELS:
        return False
    shown = [means[cell] for squares in panels.values() for cell in squares]
    low, high = min(shown), max(shown)
    wide = min(3, len(panels))
    tall = math.ceil(len(panels) / wide)
    with style.figure(1.2 + 2.6 * wide, 0.7 + 2.1 * tall) as drawn:
        axes = drawn.subplots(tall, wide, squeeze=False).flatten()
        for one, ((of, fixed), squares) in zip(axes, panels.items(), strict=False):
            keys = _keys(cells[squares[0]], grid)[:2]
            x = grid[keys[0]]
            y = grid[keys[1]] if len(keys) > 1 else [None]
            values = np.full((len(y), len(x)), np.nan)
            for cell in squares:
                at = cells[cell].at
                values[y.index(at[keys[1]]) if len(keys) > 1 else 0, x.index(at[keys[0]])] = means[cell]
            # The same colours in every panel: squares compare across conditions.
            one.imshow(values, vmin=low, vmax=high if high > low else low + 1, cmap="cividis", aspect="auto")
            for row, column in itertools.product(range(len(y)), range(len(x))):
                if not math.isnan(values[row, column]):
                    dark = values[row, column] < (low + high) / 2
                    one.text(column, row, f"{values[row, column]:.3g}", ha="center", va="center", fontsize=8,
                             color="white" if dark else style.INK)  # fmt: skip
            one.grid(False)
            one.set_xticks(range(len(x)), [str(value)[:14] for value in x])
            one.set_yticks(range(len(y)), ["" if value is None else str(value)[:14] for value in y])
            style.titles(one, keys[0], keys[1] if len(keys) > 1 else "", "\n".join([of, *([fixed] if fixed else [])]))
        for one in axes[len(panels) :]:
            one.set_visible(False)
        style.save(drawn, folder, name)
    return True


def _panels(cells: Mapping[str, CellSpec], grid: Mapping[str, Sequence[Any]]) -> dict[tuple[str, str], list[str]]:
    """Return (condition, what is held in the panel) → the cells in it."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, cell in cells.items():
        further = _keys(cell, grid)[2:]
        fixed = ", ".join(f"{key.rpartition('.')[2]} {cell.at[key]}" for key in further)
        found.setdefault((cell.of, fixed), []).append(name)
    return found


def _keys(cell: CellSpec, grid: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return the options of a cell, those with several values first: one value spans nothing."""
    there = [key for key in grid if key in cell.at]
    return sorted(there, key=lambda key: len(grid[key]) == 1)
