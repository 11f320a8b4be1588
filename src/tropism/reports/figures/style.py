"""One look for every figure, and one way to save it: SVG for the page, PNG and PDF for papers, the same bytes every time.

```python
with style.figure(4.6, 3.8) as drawn:
    axes = drawn.add_subplot()
    ...
    style.save(drawn, folder / "figures", "tradeoff")
```
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tropism.atomic import replacing
from tropism.errors import RunFolderError
from tropism.reports.figures import formats

INK = "#1d2126"
MUTED = "#6b7178"
RULE = "#dcdfe3"
COLOURS = ("#0072b2", "#d55e00", "#00856a", "#a6488f", "#a67c00", "#3a9bc8", "#7a5230", "#5b5fc7")
"""Distinct under every common colour vision (after Okabe and Ito), dark enough for white paper; markers repeat the message."""
MARKERS = ("o", "D", "^", "v", "P", "X", "<", ">")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))

_RC: dict[str, Any] = {
    # A fixed salt, because matplotlib otherwise draws random ids and no two files are the same.
    "svg.hashsalt": "tropism",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    # A condition may be called "$x$"; names are drawn as they are.
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


MOST_NAMED = 16
"""Names in a figure; with more there is room for nothing else, and the table of results has them all."""


@dataclass(frozen=True)
class Mark:
    """How one condition is drawn, in every figure alike."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]
    hollow: bool = False


def marks(names: Sequence[str], *, plain: Sequence[str] = (), hollow: Sequence[str] = ()) -> dict[str, Mark]:
    """Return a mark for each name, by position: `plain` ones (baseline, base) in ink, `hollow` ones (controls) unfilled."""
    found: dict[str, Mark] = {}
    coloured = 0
    for name in names:
        if name in plain:
            first = plain.index(name) == 0
            found[name] = Mark(INK, "s", "-") if first else Mark(MUTED, "s", ":")
            continue
        index = coloured % len(COLOURS)
        found[name] = Mark(COLOURS[index], MARKERS[index], LINES[index], name in hollow)
        coloured += 1
    return found


_FORMATS: dict[str, dict[str, Any]] = {
    "svg": {"format": "svg", "metadata": {"Date": None, "Creator": None}},
    "png": {"format": "png", "dpi": 200, "facecolor": "white", "metadata": {"Software": None}},
    "pdf": {
        "format": "pdf",
        "facecolor": "white",
        "metadata": {"CreationDate": None, "Creator": None, "Producer": None},
    },
}


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """Give a figure of that many inches, to draw and save under the one style; matplotlib's own settings stay as they are."""
    with mpl.rc_context(_RC):  # type: ignore[arg-type]
        yield Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, folder: Path, name: str) -> str:
    """Write `NAME.svg`, `NAME.png` and `NAME.pdf`, the same bytes for the same drawing; return the SVG's text.

    `TROPISM_FIGURES` in the environment names the formats, for instance `svg,png`. The SVG is always written, since the
    report shows it.

    Raises:
        RunFolderError: `name` is not a plain file name, or `TROPISM_FIGURES` names a format that is none of the three.
    """
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise RunFolderError(f"name: a figure's name has letters, digits, '_', '.' and '-' only, found {name!r}")
    wanted = formats.wanted()
    # Two processes may draw one report at once, and a reader may be looking: a figure is never there in part.
    with replacing(folder / f"{name}.svg") as svg:
        drawn.savefig(svg, **_FORMATS["svg"])
        text = svg.read_text(encoding="utf-8")
    # The layout is found once, for the SVG; to find it anew takes as long as to draw.
    drawn.set_layout_engine("none")
    for form in wanted - {"svg"}:
        with replacing(folder / f"{name}.{form}") as file:
            drawn.savefig(file, **_FORMATS[form])
    return text


def check(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    """Raise `RunFolderError` where the table of a figure has no rows or lacks a column."""
    missing = [column for column in columns if column not in table.columns]
    if missing or table.empty:
        raise RunFolderError(
            f"figure {name}: the table must have rows and the columns {', '.join(columns)}, found {len(table)} "
            f"rows and {names(table.columns)}"
        )


def names(values: Iterable[object]) -> str:
    """List each value once, for a message."""
    return ", ".join(map(str, dict.fromkeys(values))) or "nothing"


def safe_name(text: str) -> str:
    """Make a condition's or metric's name safe as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:60] or "unnamed"


def titles(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Set the axis labels and, where given, a title."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title)
