"""The hypotheses about concept ablation for an experiment that does not ask for the study.

Wherever a table of results holds an ablation and a gradient projection on the same directions, the report says what
the rules make of the pair.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tropism import stats
from tropism.results.folder import ExperimentFolder
from tropism.results.roles import Role, guards_of, role_of
from tropism.results.rules import UNDECIDED, all_numbers, numbers, shown
from tropism.results.section import Claim, Section
from tropism.results.summary import baseline_name, bounds_of, cells_of, margin_of, mark_of
from tropism.results.text import words
from tropism.stats import Bounds
from tropism.studies.concept_ablation.rules import BACKWARD, FORWARD, Column, Removal, change, mechanism, trade_off
from tropism.studies.concept_ablation.section import QUESTION

ANALYSIS = "concept_ablation"
"""The analysis of an experiment that evaluates these hypotheses itself, and says more."""


@dataclass(frozen=True)
class Pair:
    """The condition that ablates activations, and the one that projects gradients."""

    forward: str
    backward: str


def sections(summary: pd.DataFrame, folder: ExperimentFolder) -> Iterator[Section]:
    """Yield a section for each measured pair of a forward and a backward guard."""
    if summary.empty or ANALYSIS in (folder.experiment.get("analyses") or {}):
        return
    for pair in pairs(summary, folder.experiment):
        claims = []
        for column in _columns(summary, "unwanted"):
            claims += list(_claims(pair, column, summary, folder))
        if claims:
            yield Section(
                name=f"concept-ablation-{pair.forward}-{pair.backward}",
                title=f"Why ablation works: {words(pair.forward)} against {words(pair.backward)}",
                summary=QUESTION,
                claims=claims,
            )


def pairs(summary: pd.DataFrame, experiment: Mapping[str, Any]) -> list[Pair]:
    """Return the pairs of single guards on the same directions: an ablation and a projection, controls left out."""
    found: dict[str, dict[str, str]] = {}
    for condition in dict.fromkeys(summary["condition"]):
        guards = guards_of(experiment, str(condition))
        if len(guards) != 1 or role_of(experiment, str(condition)) is not Role.GUARD:
            continue
        name, options = guards[0]
        # The first of each kind: a file that has more asks for the study, which compares them all.
        if name in (FORWARD, BACKWARD):
            found.setdefault(str(options.get("directions")), {}).setdefault(name, str(condition))
    return [Pair(kinds[FORWARD], kinds[BACKWARD]) for kinds in found.values() if len(kinds) == 2]


def paired_cells(column: Column, conditions: Sequence[str], folder: ExperimentFolder) -> list[np.ndarray] | None:
    """Return `[S, P]` of each condition over the seeds and prompts that all have; None where one lacks the column."""
    found = _cells_and_bounds(column, conditions, folder)
    return None if found is None else found[0]


def _cells_and_bounds(
    column: Column, conditions: Sequence[str], folder: ExperimentFolder
) -> tuple[list[np.ndarray], Bounds | None] | None:
    metric, on = column
    part = folder.results[(folder.results["metric"] == metric) & (folder.results["eval_set"] == on)]
    scores = folder.scores[(folder.scores["metric"] == metric) & (folder.scores["eval_set"] == on)]
    modes = {name: list(part.loc[part["condition"] == name, "mode"]) for name in conditions}
    if not all(modes.values()):
        return None
    cells = [cells_of(part, scores, name, modes[name][0]) for name in conditions]
    if len({one.per_response for one in cells}) > 1:
        # Single responses can only be paired where every condition has them.
        cells = [cells_of(part, None, name, modes[name][0]) for name in conditions]
    seeds = sorted(set.intersection(*(set(one.table["seed"].dropna()) for one in cells)))
    prompts = sorted(set.intersection(*(set(one.table["id"]) for one in cells)))
    if not seeds or not prompts:
        return None
    bounds = bounds_of(part, mark_of(folder.experiment, metric), *cells)
    return [stats.to_cells(one.table, seeds, prompts) for one in cells], bounds


def _columns(summary: pd.DataFrame, mark: str) -> list[Column]:
    """(metric, evaluation set) of everything marked `wanted` or `unwanted`."""
    found = summary.loc[summary["mark"] == mark, ["metric", "eval_set"]].drop_duplicates()
    return [(str(metric), str(on)) for metric, on in found.itertuples(index=False)]


def _claims(pair: Pair, column: Column, summary: pd.DataFrame, folder: ExperimentFolder) -> Iterator[Claim]:
    found = _cells_and_bounds(column, [baseline_name(folder.experiment), pair.forward, pair.backward], folder)
    if found is None:
        return
    (base, one, other), bounds = found
    removal = Removal.of(base, one, other, bounds)
    forward, backward, gap, ratio = removal.forward, removal.backward, removal.gap, removal.ratio
    margin = margin_of(folder.experiment, column[0])
    verdict = UNDECIDED
    if forward is not None and backward is not None and gap is not None and ratio is not None:
        verdict = mechanism(forward, backward, gap, ratio, margin)
    asked: dict[str, Any] = all_numbers({
        "E_forward": forward, "E_backward": backward,
        "E_forward_minus_E_backward": gap, "E_forward_minus_2_E_backward": ratio,
    })  # fmt: skip
    on = f"{words(column[0])}, {words(column[1])}"
    because = (
        f"The activations' guard removes {shown(forward)}, the gradients' {shown(backward)}; the difference is "
        f"{shown(gap)}, and would have to lie within ±{margin:g} for training dynamics."
    )
    yield Claim(f"What removes {on}?", verdict, because, asked | {"margin": margin})

    gains = {}
    for wanted in _columns(summary, "wanted"):
        two = _cells_and_bounds(wanted, [pair.forward, pair.backward], folder)
        if two is not None and (gain := change(two[0][1], two[0][0], two[1])) is not None:
            gains[wanted] = gain
    if gains:
        listed = "; ".join(f"{words(metric)}, {words(of)} {gain}" for (metric, of), gain in gains.items())
        yield Claim(
            f"Does backward trade less than forward for {on}?",
            UNDECIDED if backward is None else trade_off(backward, list(gains.values())),
            f"The gradients' guard removes {shown(backward)}; wanted, backward minus forward: {listed}.",
            {f"{metric}/{of}": numbers(gain) for (metric, of), gain in gains.items()},
        )
