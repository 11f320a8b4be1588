"""The answer in a sentence, by rule: which guards keep the trait out, and was the wanted skill kept?

- A guard *lowers* the trait where every unwanted difference to the baseline has its whole interval below zero
  and survives Holm's correction; it *keeps it out* where, besides, at least half of the baseline's value is
  gone everywhere; it lowers it *in part* where that is so of some unwanted metrics or sets, and none is raised.
- It *keeps* a skill where every difference of that wanted metric is noninferior at its margin, and *loses* it where one
  is not.

Nothing is said in words that the table does not say in numbers, and without intervals over seeds nothing is
called a finding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd

from tropism.names import BASE
from tropism.results.roles import Role, role_of
from tropism.results.summary import baseline_name, margin_of
from tropism.results.text import count, number, rate, span, words
from tropism.stats import Verdict as Kept

LEVEL = 0.05
DIAGNOSTIC_MODES = ("retain_ablated",)
"""Ablation modes that are measured to understand a guard, and are never what would be deployed."""


class Standing(StrEnum):
    """What the intervals say of a guard and the unwanted trait."""

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
    lowered: Sequence[str]
    """Where the unwanted is lowered beyond doubt, in words."""
    skills: Mapping[str, Kept]
    """Wanted metrics, and whether they were kept."""
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
    trait = _and(list(dict.fromkeys(words(name) for name in summary.loc[summary["mark"] == "unwanted", "metric"])))
    headline = _headline(guards, trait) if finding else _without_intervals(guards, trait, summary)
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
                *_standing(unwanted),
                {str(metric): _kept(part["kept"]) for metric, part in wanted.groupby("metric", sort=False)},
                [_change(row) for row in compared.to_dict("records")],
                {
                    str(metric): float(worst)
                    for metric, worst in lost.groupby("metric", sort=False)["difference"].min().items()
                },
            )
        )
    return sorted(arms, key=lambda arm: -arm.removal)


def _standing(unwanted: pd.DataFrame) -> tuple[Standing, list[str]]:
    difference = unwanted["difference"].astype(float)
    beyond_doubt = (unwanted["difference_high"].astype(float) < 0) & (
        (unwanted["p_holm"].astype(float) < LEVEL) | (unwanted["difference_over"] == "responses")
    )
    one = unwanted["metric"].nunique() == 1
    rows = unwanted[beyond_doubt].to_dict("records")
    lowered = [words(row["eval_set"]) if one else f"{words(row['metric'])}, {words(row['eval_set'])}" for row in rows]
    if not beyond_doubt.all():
        raised = (unwanted["difference_low"].astype(float) > 0).any()
        return Standing.PART if lowered and not raised else Standing.OPEN, lowered
    before = unwanted["value"].astype(float) - difference
    out = ((before > 0) & (-difference >= 0.5 * before)).all()
    return Standing.OUT if out else Standing.LOWERS, lowered


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


def _and(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def _names(arms: Sequence[Arm]) -> list[tuple[str, bool]]:
    parts: list[tuple[str, bool]] = []
    for index, arm in enumerate(arms):
        if index:
            parts.append((" and " if index == len(arms) - 1 else ", ", False))
        parts.append((words(arm.name), True))
    return parts


def _headline(guards: Sequence[Arm], trait: str) -> Sentence:
    groups: dict[tuple[Standing, str, tuple[tuple[str, Kept], ...] | None], list[Arm]] = {}
    for standing in (Standing.OUT, Standing.LOWERS, Standing.PART):
        whole = bool(groups)  # what is lowered in part after that is named, and what it costs stands in the table
        for arm in guards:
            if arm.standing is standing:
                part = standing is Standing.PART
                where = f" ({_and(arm.lowered)})" if part else ""
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
    """What becomes of the wanted metrics, as the end of a sentence on arms that `lose` or on one that `loses`."""
    if not skills:
        return "; no metric is marked wanted, so the cost is unknown"
    lost, kept, undecided = (
        [words(metric) for metric, verdict in skills if verdict is wanted]
        for wanted in (Kept.LOST, Kept.KEPT, Kept.UNDECIDED)
    )
    said = f" but {lose} {_and(lost)}" if lost else ""
    if kept:
        said += f"{'; ' if lost else ' while '}{_and(kept)} {'is' if len(kept) == 1 else 'are'} kept"
    if undecided:
        said += f"; whether {_and(undecided)} {'is' if len(undecided) == 1 else 'are'} kept is undecided"
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
        said = (
            f", a control, {does} at least half of what the best guard does: the effect is not specific to the guard."
        )
        return Sentence([*_names(strong), (said, False)])
    largest = max(controls, key=lambda arm: arm.removal)
    changes = [rate(-removal, signed=True) for removal in (largest.removal, best)]
    said = f", changes the unwanted by {changes[0]} on average; the best guard by {changes[1]}."
    parts = [("The strongest control, ", False), (words(largest.name), True), (said, False)]
    weaker = [arm for arm in guards if arm.standing is not Standing.OPEN and 0 < arm.removal <= 2 * largest.removal]
    if weaker:
        parts += [
            (" It does at least half of what ", False),
            *_names(weaker),
            (f" {'does' if len(weaker) == 1 else 'do'}.", False),
        ]
    return Sentence(parts)
