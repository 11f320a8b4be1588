"""The figures of an inoculation study, each drawn from tables alone.

`figure("pressure_by_site", tables)` returns a matplotlib `Figure`; `save_all(tables, folder)` writes every figure whose
tables are there, as SVG, PNG and PDF, and returns their captions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tropism.errors import UsageError
from tropism.reports.figures import style
from tropism.results.section import Figure
from tropism.results.text import words
from tropism.studies.inoculation.rules import Findings
from tropism.studies.inoculation.tables import reporting_half


@dataclass(frozen=True, eq=False)
class StudyTables:
    """What the figures are drawn from; a figure whose table is None is not drawn."""

    study: Findings
    pressures: pd.DataFrame
    """`condition, chat, site, pressure, cosine, loss`."""
    random: pd.DataFrame
    """`random_pressure`'s columns and `condition`."""
    projections: pd.DataFrame | None = None
    """`side, site, projection`: held-out chats of both sides of the contrast."""
    shift: pd.DataFrame | None = None
    """`chat, site, predicted, realised`."""
    steps: pd.DataFrame | None = None
    """`condition, seed, step, site, pressure`."""

    @property
    def conditions(self) -> list[str]:
        """Neutral, inoculation, placebo, then whatever else was measured."""
        first = list(self.study.conditions)
        return first + [name for name in dict.fromkeys(self.pressures["condition"]) if name not in first]

    @property
    def marks(self) -> dict[str, style.Mark]:
        """How each condition is drawn: neutral in ink, the placebo unfilled."""
        neutral, _, placebo = self.study.conditions
        return style.marks(self.conditions, plain=[neutral], hollow=[placebo])


def _layer(site: str) -> int:
    return int(site.rpartition(".")[2])


def _zero(axes: Axes) -> None:
    axes.axhline(0, color=style.MUTED, linewidth=0.8)


def projection_distributions(drawn: matplotlib.figure.Figure, tables: StudyTables) -> None:
    """(1) Draw projections on the trait direction, promoting against suppressing chats, at the reported site."""
    assert tables.projections is not None
    axes = drawn.add_subplot()
    there = tables.projections[tables.projections["site"] == tables.study.site]
    edges = np.histogram_bin_edges(there["projection"], bins=24)
    for (side, part), colour in zip(there.groupby("side", sort=False), style.COLOURS, strict=False):
        axes.hist(
            part["projection"],
            bins=list(edges),
            density=True,
            alpha=0.55,
            color=colour,
            label=words(str(side)),
        )
    style.titles(axes, "projection on the trait direction", "density", tables.study.site)
    axes.legend()


def pressure_by_site(drawn: matplotlib.figure.Figure, tables: StudyTables) -> None:
    """(2) Draw pressure and cosine against depth, by condition, with intervals over chats."""
    for index, metric in enumerate(("pressure", "cosine"), start=1):
        axes = drawn.add_subplot(1, 2, index)
        _zero(axes)
        means = tables.study.means[tables.study.means["metric"] == metric]
        for offset, name in enumerate(tables.conditions):
            part = means[means["condition"] == name]
            mark = tables.marks[name]
            # Conditions side by side, so that their intervals do not cover each other.
            x = part["site"].map(_layer).to_numpy() + 0.12 * (offset - 1)
            value, low, high = (part[column].to_numpy(dtype=float) for column in ("value", "low", "high"))
            axes.errorbar(
                x,
                value,
                yerr=[value - low, high - value],
                color=mark.colour,
                linestyle=mark.line,
                marker=mark.marker,
                markersize=4,
                markerfacecolor="white" if mark.hollow else mark.colour,
                elinewidth=0.8,
                label=words(name),
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        style.titles(axes, "layer", metric)
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside upper center", ncols=len(labels), handlelength=2.6)


def loss_by_condition(drawn: matplotlib.figure.Figure, tables: StudyTables) -> None:
    """(3) Draw each chat's response loss, by condition."""
    axes = drawn.add_subplot()
    there = tables.pressures[tables.pressures["site"] == tables.study.site]
    groups = [there.loc[there["condition"] == name, "loss"].to_numpy(dtype=float) for name in tables.conditions]
    _violins(axes, groups, tables.conditions, [tables.marks[name].colour for name in tables.conditions])
    for place, group in enumerate(groups, start=1):
        axes.plot(place, group.mean(), marker="_", color=style.INK, markersize=14)
    style.titles(axes, "", "response loss (nats), one value per chat")


def alignment_against_random(drawn: matplotlib.figure.Figure, tables: StudyTables) -> None:
    """(4) Draw the mean cosine of gradients with random directions (violins) and with the trait's (points), by condition.

    On the reporting half alone: the other half chose the site for its trait direction, so that its points would lie
    too far from the violins.
    """
    axes = drawn.add_subplot()
    _zero(axes)
    there = reporting_half(tables.random[tables.random["site"] == tables.study.site])
    kind = str(there["kind"].iloc[0])
    there = there[there["kind"] == kind].groupby(["condition", "draw"])["cosine"].mean().reset_index()
    names = [name for name in tables.conditions if name in set(there["condition"])]
    groups = [
        there.loc[(there["condition"] == name) & (there["draw"] >= 0), "cosine"].to_numpy(dtype=float) for name in names
    ]
    _violins(axes, groups, names, [style.MUTED] * len(names))
    for place, name in enumerate(names, start=1):
        own = there.loc[(there["condition"] == name) & (there["draw"] == -1), "cosine"]
        mark = tables.marks[name]
        axes.plot(place, float(own.iloc[0]), marker=mark.marker, color=mark.colour, markersize=7)
    style.titles(axes, "", f"mean cosine; violins: {len(groups[0])} {kind} directions", tables.study.site)


def projection_shift(drawn: matplotlib.figure.Figure, tables: StudyTables) -> None:
    """(5) Draw how far training moved the mean projection on the trait direction, one point per run."""
    _runs(drawn, tables, "projection_shift", "shift of the mean projection")


def rate_shift(drawn: matplotlib.figure.Figure, tables: StudyTables) -> None:
    """(6) Draw how far training moved the trait's rate, one point per run."""
    _runs(drawn, tables, "drift", "shift of the trait's rate")


def pressure_against_drift(drawn: matplotlib.figure.Figure, tables: StudyTables) -> None:
    """(7) Draw mean pressure against drift, one point per run."""
    axes = drawn.add_subplot()
    runs = tables.study.runs
    for name in dict.fromkeys(runs["condition"]):
        part = runs[runs["condition"] == name]
        mark = tables.marks[str(name)]
        axes.plot(
            part["pressure"],
            part["drift"],
            linestyle="none",
            marker=mark.marker,
            color=mark.colour,
            label=words(str(name)),
            markerfacecolor="white" if mark.hollow else mark.colour,
        )
    pearson = tables.study.correlations.set_index(["metric", "method"])["r"].loc[("drift", "pearson")]
    said = "r is undefined" if pd.isna(pearson) else f"r = {pearson:.2f} over {len(runs)} runs"
    style.titles(axes, f"mean pressure at {tables.study.site}", "shift of the trait's rate", said)
    axes.legend()


def predicted_against_realised(drawn: matplotlib.figure.Figure, tables: StudyTables) -> None:
    """(8) Draw the pressure of each chat against what one step on it did to its projection."""
    assert tables.shift is not None
    axes = drawn.add_subplot()
    there = tables.shift[tables.shift["site"] == tables.study.site]
    there = there if len(there) else tables.shift
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    axes.axvline(0, color=style.MUTED, linewidth=0.8)
    axes.plot(
        there["predicted"],
        there["realised"],
        linestyle="none",
        marker="o",
        markersize=3.5,
        color=style.COLOURS[0],
    )
    varies = len(there) > 2 and np.ptp(there["predicted"]) > 0 and np.ptp(there["realised"]) > 0
    said = f"r = {np.corrcoef(there['predicted'], there['realised'])[0, 1]:.2f}, {len(there)} chats" if varies else ""
    style.titles(axes, "predicted: pressure", "realised shift / learning rate", said)


def pressure_over_training(drawn: matplotlib.figure.Figure, tables: StudyTables) -> None:
    """(9) Draw pressure on the same held-out chats while the model trains: mean and range of a condition's seeds."""
    assert tables.steps is not None
    axes = drawn.add_subplot()
    _zero(axes)
    there = tables.steps[tables.steps["site"] == tables.study.site]
    there = there if len(there) else tables.steps
    for name in [name for name in tables.conditions if name in set(there["condition"])]:
        by_step = there[there["condition"] == name].groupby("step")["pressure"].agg(["mean", "min", "max"])
        mark = tables.marks[name]
        axes.plot(by_step.index, by_step["mean"], color=mark.colour, linestyle=mark.line, label=words(name))
        axes.fill_between(by_step.index, by_step["min"], by_step["max"], color=mark.colour, alpha=0.12, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.titles(axes, "step", "mean pressure", tables.study.site)
    axes.legend(handlelength=2.6)


def _violins(axes: Axes, groups: Sequence[Any], names: Sequence[str], colours: Sequence[str]) -> None:
    if all(len(group) > 1 and np.ptp(group) > 0 for group in groups):
        drawn = axes.violinplot(list(groups), showextrema=False)
        bodies: Any = drawn["bodies"]  # its stub says Collection, matplotlib gives a list
        for body, colour in zip(bodies, colours, strict=True):
            body.set_facecolor(colour)
            body.set_alpha(0.35)
    else:
        # A density needs values that differ.
        for place, (group, colour) in enumerate(zip(groups, colours, strict=True), start=1):
            axes.plot(np.full(len(group), place), group, linestyle="none", marker="o", markersize=3, color=colour)
    axes.set_xticks(range(1, len(names) + 1), [words(name) for name in names])


def _runs(drawn: matplotlib.figure.Figure, tables: StudyTables, column: str, label: str) -> None:
    axes = drawn.add_subplot()
    _zero(axes)
    runs = tables.study.runs
    names = list(dict.fromkeys(runs["condition"]))
    for place, name in enumerate(names, start=1):
        values = runs.loc[runs["condition"] == name, column].to_numpy(dtype=float)
        mark = tables.marks[str(name)]
        spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(
            place + spread,
            values,
            linestyle="none",
            marker=mark.marker,
            color=mark.colour,
            markerfacecolor="white" if mark.hollow else mark.colour,
        )
        axes.plot([place - 0.25, place + 0.25], [values.mean()] * 2, color=style.INK, linewidth=1.2)
    axes.set_xticks(range(1, len(names) + 1), [words(str(name)) for name in names])
    axes.set_xlim(0.5, len(names) + 0.5)
    style.titles(axes, "", f"{label}, one point per run")


@dataclass(frozen=True)
class _Panel:
    """A figure: how it is drawn, its size in inches, its caption, and whether its tables are there."""

    draw: Callable[[matplotlib.figure.Figure, StudyTables], None]
    size: tuple[float, float]
    caption: str
    there: Callable[[StudyTables], bool] = lambda tables: True


FIGURES: dict[str, _Panel] = {
    "projection_distributions": _Panel(
        projection_distributions,
        (4.6, 3.2),
        "Projections of promoting and suppressing chats on the trait direction",
        lambda tables: tables.projections is not None,
    ),
    "pressure_by_site": _Panel(
        pressure_by_site, (7.6, 3.2), "Pressure and cosine by layer and condition, 95 % intervals over chats"
    ),
    "loss_by_condition": _Panel(loss_by_condition, (4.6, 3.2), "Response loss of every chat, by condition"),
    "alignment_against_random": _Panel(
        alignment_against_random,
        (4.6, 3.4),
        "Alignment with the trait direction (points) and with random directions (violins), on the reporting half",
    ),
    "projection_shift": _Panel(
        projection_shift,
        (4.6, 3.2),
        "Shift of the mean projection in training, one point per run",
        lambda tables: "projection_shift" in tables.study.runs.columns,
    ),
    "rate_shift": _Panel(rate_shift, (4.6, 3.2), "Shift of the trait's rate in training, one point per run"),
    "pressure_against_drift": _Panel(
        pressure_against_drift, (4.6, 3.4), "Pressure before training against drift after, one point per run"
    ),
    "predicted_against_realised": _Panel(
        predicted_against_realised,
        (4.2, 3.4),
        "Predicted against realised shift of the projection, one step per chat",
        lambda tables: tables.shift is not None and len(tables.shift) > 0,
    ),
    "pressure_over_training": _Panel(
        pressure_over_training,
        (4.7, 3.2),
        "Pressure on held-out chats over the steps of training; bands span the seeds",
        lambda tables: tables.steps is not None and len(tables.steps) > 0,
    ),
}
"""Every figure of the study, by file name."""


def figure(name: str, tables: StudyTables) -> matplotlib.figure.Figure:
    """Return one figure; raise `UsageError` for an unknown name, or where the figure's table is missing."""
    if name not in FIGURES:
        raise UsageError(f"figure: name must be one of {', '.join(FIGURES)}, found {name!r}")
    panel = FIGURES[name]
    if not panel.there(tables):
        raise UsageError(f"figure {name!r}: these tables do not hold what it shows")
    with style.figure(*panel.size) as drawn:
        panel.draw(drawn, tables)
    return drawn


def save_all(tables: StudyTables, folder: Path) -> list[Figure]:
    """Write every figure whose tables are there into `folder`; return what was written, with captions."""
    written = []
    for name, panel in FIGURES.items():
        if panel.there(tables):
            with style.figure(*panel.size) as drawn:
                panel.draw(drawn, tables)
                style.save(drawn, folder, f"inoculation_{name}")
            written.append(Figure(f"inoculation_{name}", panel.caption))
    return written
