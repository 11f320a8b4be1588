"""The concept-ablation study as a section of the report: its claims, and what is left inside the trained models."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from tropism.names import BASE
from tropism.results.rules import NOT_SUPPORTED, SUPPORTED, UNDECIDED
from tropism.results.section import Claim, Section, Table
from tropism.results.text import rate, span, words
from tropism.stats import Estimate
from tropism.studies.concept_ablation.rules import (
    Arm,
    Asked,
    Cells,
    better,
    beyond_random,
    expectation,
    hypotheses,
    judge,
    over_sites,
    pairs,
)

QUESTION = (
    "If keeping the trait out of the gradients does as much as taking it out of the activations, the trait comes from "
    "gradient updates; if only the latter helps, it comes from the features being there at all."
)


def analyse(inside: pd.DataFrame, arms: Sequence[Arm], asked: Asked, cells: Cells) -> Section:
    """Return the section of the report.

    Args:
        inside: as `rules.against_base` returns it.
        arms: the conditions with a guard on directions, in the order of the file.
        asked: the metrics, the baseline and the margin.
        cells: gives the scores of conditions, as `from_table.paired_cells` of a folder does.
    """
    claims = []
    for forward, backward in pairs(arms):
        claims += hypotheses(forward, backward, asked, cells)
    claims += list(beyond_random(arms, asked, cells))
    return Section(
        name="concept_ablation",
        title="Concept ablation: activations or gradients?",
        summary=f"{QUESTION} {_counted(claims)}",
        claims=claims,
        tables=[_removed(arms, asked, cells), *_inside_tables(inside, arms, asked.baseline)],
        notes=[
            f"Removed: {words(asked.trait[0])} on {words(asked.trait[1])} in the baseline minus under the guard, paired by "
            f"seed and prompt; the margin is {asked.margin:g}; intervals are of 95 %.",
            "Everything inside is read from the trained model without its guard, on the same chats for every model: the "
            "geometric mean over sites of the variance's ratio to the base, and the mean over sites of the cosine. Every "
            "run and site: analyses/concept_ablation.csv.",
        ],
    )


def _counted(claims: Sequence[Claim]) -> str:
    counts = []
    for verdict in (SUPPORTED, NOT_SUPPORTED, UNDECIDED):
        n = sum(claim.verdict == verdict for claim in claims)
        if n:
            counts.append(f"{n} {verdict}")
    return f"Of {len(claims)} claims: {', '.join(counts)}."


def _removed(arms: Sequence[Arm], asked: Asked, cells: Cells) -> Table:
    rows = []
    for arm in arms:
        row: list[Any] = [words(arm.directions), words(arm.condition), arm.what]
        for column, sign in {asked.trait: -1, **asked.kept}.items():
            found = cells(column, [asked.baseline, arm.condition])
            gain = None if found is None else better(found[1], found[0], sign, asked.bounds.get(column[0]))
            row.append(_cell(gain))
        rows.append(row)
    kept = []
    for (metric, on), sign in asked.kept.items():
        kept.append(f"{words(metric)}, {words(on)}" + ("" if sign > 0 else " (lower is better)"))
    return Table(
        "What each guard removes and keeps", ["directions", "condition", "guard", "removed of the trait", *kept], rows,
        "Against the baseline, signed so that more is better: what is removed of the trait, and what is gained of the rest.",
    )  # fmt: skip


def _inside_tables(inside: pd.DataFrame, arms: Sequence[Arm], baseline: str) -> Iterator[Table]:
    variance, cosine = [], []
    for name in dict.fromkeys(inside["directions"]):
        directions = str(name)
        # The base and the baseline have no guard, so nothing is expected of them.
        unguarded = [Arm(condition, "", directions) for condition in (BASE, baseline)]
        for arm in [*unguarded, *(arm for arm in arms if arm.directions == directions)]:
            here = inside[(inside["condition"] == arm.condition) & (inside["directions"] == directions)]
            if here.empty:
                continue
            means = {column: float(here[column].mean()) for column in ("share", "null_share", "cosine", "null_cosine")}
            begin = [words(directions), words(arm.condition), arm.what]
            ratio = over_sites(inside, arm.condition, directions, "variance_ratio", log=True)
            expected = expectation(arm, "variance")
            end = [_cell(ratio, math.exp), expected, judge(expected, ratio)]
            variance.append([*begin, means["share"], means["null_share"], *end])
            change = over_sites(inside, arm.condition, directions, "cosine_change")
            expected = expectation(arm, "cosine")
            end = [_cell(change), expected, judge(expected, change)]
            mean = None if math.isnan(means["cosine"]) else means["cosine"]
            cosine.append([*begin, mean, means["null_cosine"], *end])
    columns = ["directions", "condition", "guard"]
    yield Table(
        "Variance along the directions", [*columns, "share of all", "by chance", "ratio to base", "expected", "verdict"],
        variance, "Share: of the activations' variance; by chance: k/d. Suppressed: less than half of the base's is left.",
    )  # fmt: skip
    yield Table(
        "Cosine of gradient and subspace", [*columns, "cosine", "by chance", "change from base", "expected", "verdict"],
        cosine, "By chance: √(k/d).",
    )  # fmt: skip


def _cell(estimate: Estimate | None, show: Callable[[float], float] = float) -> str | None:
    """Write an estimate for a table, through `show` (`math.exp` of a log ratio); only an untransformed one is signed."""
    if estimate is None:
        return None
    low, high = (None if end is None else show(end) for end in (estimate.low, estimate.high))
    signed = show is float
    return f"{rate(show(estimate.value), signed)} {span(low, high, signed)}".rstrip()
