"""What happened in training: the loss, and what the guards read, a line per condition with a band over its seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tropism.reports.figures import style
from tropism.results.text import words

Rows = Sequence[Mapping[str, Any]]
GUARD = "guard/"
"""Prefix of a guard's readings in `training.jsonl`."""


@dataclass(frozen=True)
class Reading:
    """What a figure shows: the keys of `training.jsonl` whose mean is drawn, one per site of a guard."""

    name: str
    keys: Sequence[str]
    label: str
    caption: str


def readings(training: Mapping[str, Sequence[Rows]]) -> list[Reading]:
    """Return the loss, then each guard's readings in the order in which they first appear, all sites of one together."""
    groups: dict[str, list[str]] = {}
    for row in (row for runs in training.values() for rows in runs for row in rows):
        for key, value in row.items():
            if _is_number(value) and (key == "loss" or key.startswith(GUARD)):
                keys = groups.setdefault(_without_site(key), [])
                if key not in keys:
                    keys.append(key)
    return [_reading(name, keys) for name, keys in sorted(groups.items(), key=lambda item: item[0] != "loss")]


def _without_site(key: str) -> str:
    """`guard/NAME/SITE/READING` → `guard/NAME/READING`."""
    parts = key.split("/")
    return "/".join((parts[0], parts[1], parts[-1])) if len(parts) >= 4 else key


def _reading(name: str, keys: Sequence[str]) -> Reading:
    label = words(name.removeprefix(GUARD)).replace("/", ": ")
    over = f", mean over {len(keys)} sites" if len(keys) > 1 else ""
    return Reading(name, keys, label, f"{label} over the steps of training{over}; bands span the seeds")


def _is_number(value: object) -> bool:
    # True is an int in Python, and no reading.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curve(runs: Sequence[Rows], keys: Sequence[str]) -> tuple[list[int], np.ndarray]:
    """Return the steps that every run has, and the values `[runs, steps]`; runs without the reading are left out."""
    series = []
    for rows in runs:
        one = {}
        for row in rows:
            values = [float(row[key]) for key in keys if _is_number(row.get(key))]
            if values and "step" in row:
                one[int(row["step"])] = sum(values) / len(values)
        if one:
            series.append(one)
    # Means and ranges over seeds are of the same runs at every step.
    steps = sorted(set.intersection(*(set(one) for one in series))) if series else []
    return steps, np.array([[one[step] for step in steps] for one in series])


def draw(
    training: Mapping[str, Sequence[Rows]],
    reading: Reading,
    marks: Mapping[str, style.Mark],
    folder: Path,
    name: str,
) -> str:
    """Draw one reading over the steps: the mean of a condition's seeds, and the range between them."""
    with style.figure(4.7, 3.2) as drawn:
        axes = drawn.add_subplot()
        drawn_lines = 0
        for condition, runs in training.items():
            steps, values = curve(runs, reading.keys)
            if not steps:
                continue
            mark, drawn_lines = marks[condition], drawn_lines + 1
            label = words(condition) if drawn_lines <= style.MOST_NAMED else None
            axes.plot(steps, values.mean(axis=0), color=mark.colour, linestyle=mark.line, label=label)
            if len(values) > 1:
                axes.fill_between(
                    steps, values.min(axis=0), values.max(axis=0), color=mark.colour, alpha=0.12, linewidth=0
                )
        if drawn_lines > style.MOST_NAMED:
            axes.plot([], [], " ", label=f"and {drawn_lines - style.MOST_NAMED} more")
        style.titles(axes, "step", reading.label)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", ncols=2, handlelength=2.6)
        return style.save(drawn, folder, name)
