"""The answer in a sentence, by rule: which guards keep the trait out, and was the wanted skill kept?

- A guard *lowers* the trait where every unwanted difference to the baseline has its whole interval below zero
  and survives Holm's correction; it *keeps it out* where, besides, at least half of the baseline's value is
  gone everywhere.
- It *keeps* the skill where every wanted difference is noninferior at its margin.

Nothing is said in words that the table does not say in numbers, and without intervals over seeds nothing is
called a finding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd

from tropism.reports.roles import Role, role_of
from tropism.reports.summary import BASE, baseline_name, margin_of
from tropism.reports.text import count, number, rate, span, words
from tropism.stats import Verdict as Kept

LEVEL = 0.05
DIAGNOSTIC_MODES = ("retain_ablated",)
"""Ablation modes that are measured to understand a guard, and are never what would be deployed."""


class Standing(StrEnum):
    """What the intervals say of a guard and the unwanted trait."""

    OUT = "keeps it out"
    LOWERS = "lowers it"
    OPEN = "not shown to lower it"


@dataclass(frozen=True)
class Sentence:
    """A sentence in parts; the emphasised ones are names."""

    parts: Sequence[tuple[str, bool]]

    def __str__(self) -> str:
        return "".join(text for text, _ in self.parts)


@dataclass(frozen=True)
class Change:
    """A marked metric's difference to the baseline, as it is shown."""

    metric: str
    eval_set: str
    mark: str
    value: str
    interval: str
    said: str
    """For wanted metrics whether they were kept; empty for unwanted ones."""


@dataclass(frozen=True)
class Arm:
    """An arm against the baseline, by the rules above."""

    name: str
    condition: str
    removal: float
    """How much of the unwanted metrics went, on average over them; positive is good."""
    standing: Standing
    kept: Kept
    changes: Sequence[Change]
    costs: Mapping[str, float]
    """Wanted metrics of which more than the margin was lost, by the mean difference alone, and that difference."""


@dataclass(frozen=True)
class Answer:
    """The headline and what supports it."""

    headline: Sentence
    guards: Sequence[Arm] = ()
    controls: Sentence | None = None
    margins: Sentence | None = None
    finding: bool = False
    """Whether intervals over seeds stand behind it."""


def sentence(*parts: str | tuple[str, bool]) -> Sentence:
    """A sentence of plain parts and `(name, True)` parts."""
    return Sentence([part if isinstance(part, tuple) else (part, False) for part in parts])


def answer(summary: pd.DataFrame, experiment: dict[str, Any]) -> Answer:
    """The experiment's verdict from its summary table."""
    baseline = baseline_name(experiment)
    if set(summary["condition"]) <= {BASE}:
        return Answer(
            sentence("No run finished, so nothing was learned that could be measured, and there is no answer.")
        )
    if not (summary["mark"] == "unwanted").any():
        return Answer(
            sentence("No metric is marked unwanted, so no rule gives a verdict; the table says what was measured.")
        )
    if not (summary["condition"] == baseline).any():
        return Answer(
            sentence(f"The baseline ({words(baseline)}) has no finished run, so there is nothing to compare with.")
        )
    arms = judged(summary, experiment)
    guards = [arm for arm in arms if role_of(experiment, arm.condition) is Role.GUARD]
    if not guards:
        return Answer(sentence("No guard has a finished run to compare with the baseline."))
    finding = bool(summary.loc[summary["difference"].notna(), "difference_over"].str.startswith("seeds").any())
    trait, skill = (_listed(summary, mark) for mark in ("unwanted", "wanted"))
    headline = _headline(guards, trait, skill) if finding else _without_intervals(guards, trait, summary)
    controls = [arm for arm in arms if role_of(experiment, arm.condition) is Role.CONTROL]
    return Answer(headline, guards, _controls(guards, controls), _margins(summary, experiment), finding)


def judged(summary: pd.DataFrame, experiment: dict[str, Any]) -> list[Arm]:
    """Every arm that can be compared with the baseline, the one that removed most first."""
    arms = []
    for label, rows in summary.groupby("arm", sort=False):
        compared = rows[rows["difference"].notna() & (rows["mark"] != "")]
        unwanted = compared[compared["mark"] == "unwanted"]
        if unwanted.empty or rows["mode"].iloc[0] in DIAGNOSTIC_MODES:
            continue
        wanted = compared[compared["mark"] == "wanted"]
        margins = [-margin_of(experiment, metric) for metric in wanted["metric"]]
        lost = wanted[wanted["difference"].astype(float) < margins]
        arms.append(
            Arm(
                str(label),
                str(rows["condition"].iloc[0]),
                -float(unwanted["difference"].astype(float).mean()),
                _standing(unwanted),
                _kept(wanted["kept"]),
                [_change(row) for row in compared.to_dict("records")],
                {str(metric): float(worst) for metric, worst in lost.groupby("metric", sort=False)["difference"].min().items()},
            )
        )
    return sorted(arms, key=lambda arm: -arm.removal)


def _standing(unwanted: pd.DataFrame) -> Standing:
    difference = unwanted["difference"].astype(float)
    beyond_doubt = (unwanted["difference_high"].astype(float) < 0) & (
        (unwanted["p_holm"].astype(float) < LEVEL) | (unwanted["difference_over"] == "responses")
    )
    if not beyond_doubt.all():
        return Standing.OPEN
    before = unwanted["value"].astype(float) - difference
    return Standing.OUT if ((before > 0) & (-difference >= 0.5 * before)).all() else Standing.LOWERS


def _kept(verdicts: "pd.Series[str]") -> Kept:
    if (verdicts == Kept.LOST).any():
        return Kept.LOST
    return Kept.UNDECIDED if verdicts.empty or (verdicts == Kept.UNDECIDED).any() else Kept.KEPT


def _change(row: Mapping[Any, Any]) -> Change:
    interval = span(row["difference_low"], row["difference_high"], signed=True)
    return Change(
        row["metric"],
        row["eval_set"],
        row["mark"],
        rate(row["difference"], signed=True),
        interval,
        row["kept"],
    )


def _listed(summary: pd.DataFrame, mark: str) -> str:
    return " and ".join(dict.fromkeys(words(name) for name in summary.loc[summary["mark"] == mark, "metric"]))


def _names(arms: Sequence[Arm]) -> list[tuple[str, bool]]:
    parts: list[tuple[str, bool]] = []
    for index, arm in enumerate(arms):
        if index:
            parts.append((" and " if index == len(arms) - 1 else ", ", False))
        parts.append((words(arm.name), True))
    return parts


def _headline(guards: Sequence[Arm], trait: str, skill: str) -> Sentence:
    parts: list[tuple[str, bool]] = []
    out = [arm for arm in guards if arm.standing is Standing.OUT]
    lowering = [arm for arm in guards if arm.standing is Standing.LOWERS]
    if not out and not lowering:
        return sentence(
            f"No guard keeps {trait} out, and none lowers it beyond doubt over seeds; ",
            (words(guards[0].name), True),
            " lowers it most.",
        )
    if not out:
        parts.append((f"No guard keeps {trait} out. ", False))
    object_ = trait
    ends = {
        Kept.KEPT: f" while {skill} is kept. ",
        Kept.UNDECIDED: f"; whether {skill} is kept is undecided. "
        if skill
        else ". No metric is marked wanted: the cost is unknown. ",
        Kept.LOST: f" but {{}} {skill}. ",
    }
    for kept, end in ends.items():
        named = [arm for arm in out if arm.kept is kept]
        if named:
            one = len(named) == 1
            text = f" {'keeps' if one else 'keep'} {object_} out{end.format('loses' if one else 'lose')}"
            parts += [*_names(named), (text, False)]
            object_ = "it"
    if lowering:
        one = len(lowering) == 1
        parts += [*_names(lowering), (f" only {'lowers' if one else 'lower'} it. ", False)]
    return Sentence(parts)


def _without_intervals(guards: Sequence[Arm], trait: str, summary: pd.DataFrame) -> Sentence:
    best = guards[0]
    among = f"In {count(int(summary['seeds'].max()), 'seed')} "
    end = " Too few seeds for an interval over seeds: a description, not a finding."
    if best.removal <= 0:
        return sentence(f"{among}no guard lowers {trait}.{end}")
    lowers = f" lowers {trait} most, by {rate(best.removal)} on average"
    if not best.costs:
        return sentence(among, (words(best.name), True), f"{lowers}.{end}")
    lost = " and ".join(f"{words(metric)} by {rate(-by)}" for metric, by in best.costs.items())
    cheap = next((arm for arm in guards[1:] if not arm.costs and arm.removal > 0), None)
    if cheap is None:
        so = f"{lowers}, but also {lost}; no guard lowers it without such a cost.{end}"
        return sentence(among, (words(best.name), True), so)
    instead = [(words(cheap.name), True), (f" lowers it by {rate(cheap.removal)} at no such cost.{end}", False)]
    return Sentence([(among, False), (words(best.name), True), (f"{lowers}, but also {lost}; ", False), *instead])


def _margins(summary: pd.DataFrame, experiment: dict[str, Any]) -> Sentence | None:
    wanted = dict.fromkeys(summary.loc[summary["mark"] == "wanted", "metric"])
    if not wanted:
        return None
    listed = ", ".join(f"{number(margin_of(experiment, metric))} in {words(metric)}" for metric in wanted)
    return sentence(f"Kept: the whole interval is above the margin, a loss of {listed}; lost: all of it is below.")


def _controls(guards: Sequence[Arm], controls: Sequence[Arm]) -> Sentence | None:
    best = guards[0].removal
    if not controls or best <= 0:
        return None
    strong = [arm for arm in controls if arm.removal >= 0.5 * best]
    if strong:
        does = "does" if len(strong) == 1 else "do"
        return Sentence(
            [
                *_names(strong),
                (
                    f", a control, {does} at least half of what the best guard does: the effect is not "
                    "specific to the guard.",
                    False,
                ),
            ]
        )
    largest = max(controls, key=lambda arm: arm.removal)
    return sentence(
        "The strongest control, ",
        (words(largest.name), True),
        f", changes the unwanted by "
        f"{rate(-largest.removal, signed=True)} on average; the best guard by {rate(-best, signed=True)}.",
    )
