"""The answer in a sentence, by rule: which guards keep the trait out, and was the wanted skill kept?

- A guard *lowers* the trait if every unwanted difference to the baseline has its whole interval below zero and
  survives Holm's correction. It *keeps the trait out* if, in addition, at least half of the baseline's value is gone
  everywhere, and the baseline had learned it (`results/comparison.py`). It lowers it
  *in part* if that holds for some unwanted metrics or sets, and none is raised.
- It *keeps* a skill if every difference of that wanted metric is noninferior at its margin, and *loses* it if one is
  not.

The words say nothing that the table does not say in numbers, and without intervals over seeds nothing is called a
finding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd

from tropism.names import BASE
from tropism.results.comparison import MUCH, Shown, shown, untrained_value
from tropism.results.roles import Role, role_of
from tropism.results.summary import baseline_name, margin_of
from tropism.results.text import count, listed, number, rate, span, words
from tropism.stats import Verdict as Kept

DIAGNOSTIC_MODES = ("retain_ablated",)
"""Ablation modes that are measured to understand a guard, and would never be deployed."""


class Standing(StrEnum):
    """What the intervals say about a guard and the unwanted trait."""

    OUT = "keeps it out"
    LOWERS = "lowers it"
    PART = "lowers it in part"
    OPEN = "not shown to lower it"


@dataclass(frozen=True)
class Sentence:
    """A sentence in parts; the emphasised ones are names."""

    parts: Sequence[tuple[str, bool]]

    def __str__(self) -> str:
        return "".join(text for text, _ in self.parts)


@dataclass(frozen=True)
class Change:
    """The difference of a marked metric to the baseline, as it is shown."""

    metric: str
    eval_set: str
    mark: str
    value: str
    interval: str
    said: str
    """For a wanted metric whether it was kept; empty for an unwanted one."""
    shown: Shown | None
    """For an unwanted metric what its interval shows; None for a wanted one."""


@dataclass(frozen=True)
class Arm:
    """An arm against the baseline, by the rules above."""

    name: str
    condition: str
    removal: float
    """How far the unwanted metrics fell, on average over them; positive is good."""
    standing: Standing
    lowered: Sequence[str]
    """Where the trait is lowered beyond doubt, in words."""
    skills: Mapping[str, Kept]
    """Wanted metric → whether it was kept."""
    changes: Sequence[Change]
    costs: Mapping[str, float]
    """Wanted metric → its mean difference, where that is a loss of more than the margin."""


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
    """Build a sentence from plain parts and `(name, True)` parts."""
    return Sentence([part if isinstance(part, tuple) else (part, False) for part in parts])


def answer(summary: pd.DataFrame, experiment: dict[str, Any]) -> Answer:
    """Return the experiment's verdict from its summary table."""
    baseline = baseline_name(experiment)
    if set(summary["condition"]) <= {BASE}:
        return Answer(sentence("No condition has a measurement, so there is no answer."))
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
    unwanted = dict.fromkeys(summary.loc[summary["mark"] == "unwanted", "metric"])
    trait = listed([words(name) for name in unwanted])
    headline = _headline(guards, trait) if finding else _without_intervals(guards, trait, summary)
    controls = [arm for arm in arms if role_of(experiment, arm.condition) is Role.CONTROL]
    return Answer(headline, guards, _controls(guards, controls), _margins(summary, experiment), finding)


def judged(summary: pd.DataFrame, experiment: dict[str, Any]) -> list[Arm]:
    """Return every arm that can be compared with the baseline, the one that removed most first."""
    arms = []
    for label, rows in summary.groupby("arm", sort=False):
        compared = rows[rows["difference"].notna() & (rows["mark"] != "")]
        unwanted = compared[compared["mark"] == "unwanted"]
        # Nobody would deploy a model in a diagnostic mode, so it is no candidate for the best guard.
        if unwanted.empty or rows["mode"].iloc[0] in DIAGNOSTIC_MODES:
            continue
        wanted = compared[compared["mark"] == "wanted"]
        changes = [_change(row, summary) for row in compared.to_dict("records")]
        standing, lowered = _standing([change for change in changes if change.shown is not None])
        arms.append(
            Arm(
                name=str(label),
                condition=str(rows["condition"].iloc[0]),
                removal=-float(unwanted["difference"].astype(float).mean()),
                standing=standing,
                lowered=lowered,
                skills={str(metric): _kept(part["kept"]) for metric, part in wanted.groupby("metric", sort=False)},
                changes=changes,
                costs=_costs(wanted, experiment),
            )
        )
    return sorted(arms, key=lambda arm: -arm.removal)


def _costs(wanted: pd.DataFrame, experiment: dict[str, Any]) -> dict[str, float]:
    # By the mean alone: without intervals this describes, and the headline says so.
    margins = [-margin_of(experiment, metric) for metric in wanted["metric"]]
    lost = wanted[wanted["difference"].astype(float) < margins]
    worst = lost.groupby("metric", sort=False)["difference"].min()
    return {str(metric): float(change) for metric, change in worst.items()}


def _standing(unwanted: Sequence[Change]) -> tuple[Standing, list[str]]:
    """Return where a guard stands on the unwanted trait, and where it lowers it beyond doubt."""
    one = len({change.metric for change in unwanted}) == 1
    lowered = []
    for change in unwanted:
        if change.shown is not None and change.shown.is_lower:
            where = words(change.eval_set)
            lowered.append(where if one else f"{words(change.metric)}, {where}")
    found = [change.shown for change in unwanted]
    if len(lowered) < len(unwanted):
        return Standing.PART if lowered and Shown.RAISED not in found else Standing.OPEN, lowered
    return Standing.OUT if set(found) == {Shown.OUT} else Standing.LOWERS, lowered


def _kept(verdicts: "pd.Series[str]") -> Kept:
    """The verdict on a skill that was measured on several sets: the worst of them."""
    if (verdicts == Kept.LOST).any():
        return Kept.LOST
    return Kept.UNDECIDED if verdicts.empty or (verdicts == Kept.UNDECIDED).any() else Kept.KEPT


def _change(row: Mapping[Any, Any], summary: pd.DataFrame) -> Change:
    interval = span(row["difference_low"], row["difference_high"], signed=True)
    unwanted = row["mark"] == "unwanted"
    return Change(
        row["metric"],
        row["eval_set"],
        row["mark"],
        rate(row["difference"], signed=True),
        interval,
        row["kept"],
        shown(row, untrained_value(summary, row["metric"], row["eval_set"])) if unwanted else None,
    )


def _names(arms: Sequence[Arm]) -> list[tuple[str, bool]]:
    parts: list[tuple[str, bool]] = []
    for index, arm in enumerate(arms):
        if index:
            parts.append((" and " if index == len(arms) - 1 else ", ", False))
        parts.append((words(arm.name), True))
    return parts


def _headline(guards: Sequence[Arm], trait: str) -> Sentence:
    # Guards of which the same can be said share a sentence.
    groups: dict[tuple[Standing, str, tuple[tuple[str, Kept], ...] | None], list[Arm]] = {}
    for standing in (Standing.OUT, Standing.LOWERS, Standing.PART):
        # Once a guard does it everywhere, those that do it in part are only named: the table has what they cost.
        whole = bool(groups)
        for arm in guards:
            if arm.standing is standing:
                part = standing is Standing.PART
                where = f" ({listed(arm.lowered)})" if part else ""
                skills = None if part and whole else tuple(arm.skills.items())
                groups.setdefault((standing, where, skills), []).append(arm)
    if not groups:
        return sentence(
            f"No guard keeps {trait} out, and none lowers it beyond doubt over seeds; ",
            (words(guards[0].name), True),
            " lowers it most.",
        )
    parts: list[tuple[str, bool]] = []
    it = trait
    if not any(standing is Standing.OUT for standing, _, _ in groups):
        parts.append((f"No guard keeps {trait} out. ", False))
        it = "it"
    for (standing, where, skills), arms in groups.items():
        s = "s" if len(arms) == 1 else ""
        does = {
            Standing.OUT: f"keep{s} {it} out",
            Standing.LOWERS: f"only lower{s} {it}",
            Standing.PART: f"lower{s} {it} in part{where}",
        }[standing]
        parts += [*_names(arms), (f" {does}{'' if skills is None else _skills(skills, f'lose{s}')}. ", False)]
        it = "it"
    return Sentence(parts)


def _skills(skills: Sequence[tuple[str, Kept]], lose: str) -> str:
    """Say what becomes of the wanted metrics: the end of a sentence about arms that `lose` or one that `loses`."""
    if not skills:
        return "; no metric is marked wanted, so the cost is unknown"
    lost = [words(metric) for metric, verdict in skills if verdict is Kept.LOST]
    kept = [words(metric) for metric, verdict in skills if verdict is Kept.KEPT]
    undecided = [words(metric) for metric, verdict in skills if verdict is Kept.UNDECIDED]
    said = f" but {lose} {listed(lost)}" if lost else ""
    if kept:
        said += f"{'; ' if lost else ' while '}{listed(kept)} {'is' if len(kept) == 1 else 'are'} kept"
    if undecided:
        said += f"; whether {listed(undecided)} {'is' if len(undecided) == 1 else 'are'} kept is undecided"
    return said


def _without_intervals(guards: Sequence[Arm], trait: str, summary: pd.DataFrame) -> Sentence:
    best = guards[0]
    among = f"In {count(int(summary['seeds'].max()), 'seed')} "
    end = " Too few seeds for an interval over seeds: a description, not a finding."
    if best.removal <= 0:
        return sentence(f"{among}no guard lowers {trait}.{end}")
    lowers = f" lowers {trait} most, by {rate(best.removal)} on average"
    if not best.costs:
        return sentence(among, (words(best.name), True), f"{lowers}.{end}")
    lost = " and ".join(f"{words(metric)} by {rate(-change)}" for metric, change in best.costs.items())
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
    margins = ", ".join(f"{number(margin_of(experiment, metric))} in {words(metric)}" for metric in wanted)
    return sentence(f"Kept: the whole interval is above the margin, a loss of {margins}; lost: all of it is below.")


def _controls(guards: Sequence[Arm], controls: Sequence[Arm]) -> Sentence | None:
    best = guards[0].removal
    if not controls or best <= 0:
        return None
    strong = [arm for arm in controls if arm.removal >= MUCH * best]
    if strong:
        do = "a control, does" if len(strong) == 1 else "controls, do"
        said = f", {do} at least half of what the best guard does: the effect is not specific to the guard."
        return Sentence([*_names(strong), (said, False)])
    # No control does half as much as the best guard; it may still do half as much as a weaker one.
    largest = max(controls, key=lambda arm: arm.removal)
    changes = [rate(-removal, signed=True) for removal in (largest.removal, best)]
    said = f", changes the unwanted metrics by {changes[0]} on average; the best guard by {changes[1]}."
    parts = [("The strongest control, ", False), (words(largest.name), True), (said, False)]
    matched = largest.removal / MUCH
    weaker = [arm for arm in guards if arm.standing is not Standing.OPEN and 0 < arm.removal <= matched]
    if weaker:
        parts += [
            (" It does at least half of what ", False),
            *_names(weaker),
            (f" {'does' if len(weaker) == 1 else 'do'}.", False),
        ]
    return Sentence(parts)
