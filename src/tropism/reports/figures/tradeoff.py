"""The trade-off: how much of the wanted skill is there against how much of the unwanted trait is left, a point per arm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import BboxBase

from tropism.reports.figures import style
from tropism.results.text import words

MOST_PANELS = 4
SAME_PLACE = 3.0
"""Pixels within which two points cannot be told apart."""
PER_LINE = 2
"""Names per line of a shared label."""


def panels(summary: pd.DataFrame) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Return the panels, as (metric, evaluation set) of each unwanted metric against those of the first wanted one."""
    columns = summary.loc[summary["mark"] != "", ["mark", "metric", "eval_set"]].drop_duplicates()
    wanted = columns[columns["mark"] == "wanted"]
    if wanted.empty or summary["arm"].nunique() < 2:
        return []
    across = (str(wanted["metric"].iloc[0]), str(wanted["eval_set"].iloc[0]))
    unwanted = columns[columns["mark"] == "unwanted"][["metric", "eval_set"]]
    return [((str(metric), str(on)), across) for metric, on in unwanted.itertuples(index=False)][-MOST_PANELS:]


def draw(
    summary: pd.DataFrame,
    unwanted: tuple[str, str],
    wanted: tuple[str, str],
    marks: Mapping[str, style.Mark],
    folder: Path,
    name: str,
) -> str:
    """Draw one panel into `folder` and return its SVG; a cross shows the intervals where there are any."""
    with style.figure(4.7, 3.9) as drawn:
        axes = drawn.add_subplot()
        points: list[Point] = []
        for arm, rows in summary.groupby("arm", sort=False):
            x, y = _row(rows, wanted), _row(rows, unwanted)
            if x is None or y is None:
                continue
            mark = marks[str(arm)]
            point = Point(words(str(arm)), mark.colour, float(x["value"]), float(y["value"]), _ends(x), _ends(y))
            axes.plot(point.across, (point.y, point.y), color=mark.colour, linewidth=1.0, alpha=0.5, zorder=2)
            axes.plot((point.x, point.x), point.along, color=mark.colour, linewidth=1.0, alpha=0.5, zorder=2)
            axes.plot(
                point.x,
                point.y,
                mark.marker,
                color=mark.colour,
                markersize=6.5,
                markeredgewidth=1.3,
                zorder=3,
                markerfacecolor="white" if mark.hollow else mark.colour,
            )
            points.append(point)
        style.titles(
            axes,
            f"{words(wanted[0])}, {words(wanted[1])} (wanted →)",
            f"{words(unwanted[0])}, {words(unwanted[1])} (← unwanted)",
        )
        axes.margins(0.1)
        _label(axes, points[: style.MOST_NAMED])
        if len(points) > style.MOST_NAMED:
            axes.set_title(f"{style.MOST_NAMED} of {len(points)} are named", fontsize=8, loc="right", color=style.INK)
        return style.save(drawn, folder, name)


@dataclass(frozen=True)
class Point:
    """An arm in the plane, with its intervals."""

    name: str
    colour: str
    x: float
    y: float
    across: tuple[float, float]
    along: tuple[float, float]


def _row(rows: pd.DataFrame, column: tuple[str, str]) -> "pd.Series[float] | None":
    found = rows[(rows["metric"] == column[0]) & (rows["eval_set"] == column[1])]
    return None if found.empty else found.iloc[0]


def _ends(row: "pd.Series[float]") -> tuple[float, float]:
    if pd.isna(row["low"]) or pd.isna(row["high"]):
        return float(row["value"]), float(row["value"])
    return float(row["low"]), float(row["high"])


Box = tuple[float, float, float, float]


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Put names beside their points, each where it covers the least: a legend would have to be looked up."""
    drawn = axes.figure
    # Places in pixels are known only once the figure has been laid out.
    drawn.canvas.draw()
    frame = axes.get_window_extent()
    scale = drawn.dpi / 72.0
    # What a label should not cover: the marks, the arms of their crosses, and the labels placed before it.
    taken: list[Box] = []
    for point in points:
        (left, y), (right, _) = (axes.transData.transform((x, point.y)) for x in point.across)
        (x, low), (_, high) = (axes.transData.transform((point.x, y)) for y in point.along)
        taken += [
            (x - 5, y - 5, x + 5, y + 5),
            (left, y - 1.5, right, y + 1.5),
            (x - 1.5, low, x + 1.5, high),
        ]
    for group in _together(axes, points):
        first = group[0]
        text = _listed([point.name for point in group])
        # Coordinates in pixels, because overlaps are a matter of what is seen.
        x, y = axes.transData.transform((first.x, first.y))
        place, box = _best_place((float(x), float(y)), text, scale, frame, taken)
        taken.append(box)
        axes.annotate(
            text,
            (first.x, first.y),
            xytext=place,
            textcoords="offset points",
            color=first.colour if len(group) == 1 else style.INK,
            fontsize=8,
            ha="left" if place[0] >= 0 else "right",
            va="center",
            linespacing=1.1,
            annotation_clip=False,
        )


def _best_place(
    at: tuple[float, float], text: str, scale: float, frame: BboxBase, taken: Sequence[Box]
) -> tuple[tuple[float, float], Box]:
    """Return where a label covers the least: its offset in points, and its box in pixels."""
    x, y = at
    lines = text.splitlines()
    # A letter of the 8-point font is about 4.9 points wide and a line 10 points high.
    width, height = 4.9 * max(map(len, lines)) * scale, 10.0 * len(lines) * scale
    cost, place, box = math.inf, _PLACES[0], taken[0]
    for dx, dy in _PLACES:
        left = x + dx * scale if dx >= 0 else x + dx * scale - width
        middle = y + (dy + math.copysign(5.0 * (len(lines) - 1), dy)) * scale
        tried = (left, middle - height / 2, left + width, middle + height / 2)
        over = (tried[2] - frame.x1, frame.x0 - tried[0], tried[3] - frame.y1, frame.y0 - tried[1])
        outside = sum(max(0.0, by) for by in over)
        covered = sum(_overlap(tried, other) for other in taken)
        tried_cost = covered + 60 * outside + 1.5 * (abs(dx) + abs(dy))
        if tried_cost < cost:
            cost, place, box = tried_cost, (dx, (middle - y) / scale), tried
    return place, box


def _together(axes: Axes, points: Sequence[Point]) -> list[list[Point]]:
    """Group points that cannot be told apart; they share one label."""
    groups: list[list[Point]] = []
    for point in points:
        here = axes.transData.transform((point.x, point.y))
        for group in groups:
            if math.dist(here, axes.transData.transform((group[0].x, group[0].y))) < SAME_PLACE:
                group.append(point)
                break
        else:
            groups.append([point])
    return groups


def _listed(names: Sequence[str]) -> str:
    lines = [", ".join(names[start : start + PER_LINE]) for start in range(0, len(names), PER_LINE)]
    return ",\n".join(lines)


_PLACES = [
    (dx, dy) for dy in (8.0, -8.0, 0.0, 16.0, -16.0, 26.0, -26.0, 36.0, -36.0, 46.0) for dx in (5.0, -5.0, 10.0, -10.0)
]


def _overlap(one: Box, two: Box) -> float:
    wide = min(one[2], two[2]) - max(one[0], two[0])
    high = min(one[3], two[3]) - max(one[1], two[1])
    return wide * high if wide > 0 and high > 0 else 0.0
