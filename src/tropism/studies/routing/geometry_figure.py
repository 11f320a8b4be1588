"""A heat map of two adapters' geometry by layer and module, each cell read against its own null."""

from pathlib import Path

import numpy as np
import pandas as pd

from tropism.errors import RunFolderError
from tropism.reports.figures import style

PANELS = {
    "cosine": "cosine of the two ΔW",
    "row_overlap": "overlap of input spaces",
    "column_overlap": "overlap of output spaces",
}


def draw(geometry: pd.DataFrame, folder: Path, name: str) -> str:
    """Cosine and overlaps, each minus the mean of its null; a dot where it lies outside the null's central 95 %.

    `geometry` is the table of `lora_geometry`. Weights outside any block (`layer` missing) are left out; cells of
    modules
    that a layer lacks, or where an adapter is zero, stay blank. Returns the SVG.
    """
    rows = geometry.dropna(subset=["layer"])
    if rows.empty:
        raise RunFolderError(f"figure {name}: the geometry must have at least one weight inside a block, found none")
    modules = list(dict.fromkeys(rows["module"]))
    layers = sorted(int(layer) for layer in set(rows["layer"]))
    with style.figure(1.2 + 3 * (0.6 + 0.28 * len(modules)), 1.5 + 0.14 * len(layers)) as drawn:
        panels = drawn.subplots(1, len(PANELS), sharey=True)
        for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
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
