"""`card.md` and `protect.json`: what was found, what was tried, what helped and at what price, and how to make it again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tropism.atomic import write_text
from tropism.forecasting.protect.candidates import BASELINE, CONTROLS, Candidate, controls_of
from tropism.forecasting.protect.choice import Choice, Line
from tropism.forecasting.protect.race import Standing
from tropism.results.comparison import MUCH, Shown
from tropism.results.text import listed, rate, span, visible, words

FORMAT = "tropism.protect/1"


@dataclass(frozen=True)
class Told:
    """All that a card says."""

    model: str
    data: str
    command: str
    unwanted: tuple[str, ...] = ()
    forecast: dict[str, str] = field(default_factory=dict)
    """Trait → the forecast's sentence."""
    blamed: int = 0
    rows: int = 0
    stopped: str = ""
    """Why it ended before the race; empty where it did not."""
    cannot: tuple[str, ...] = ()
    """Traits of which nothing can be said on this model: never called absent."""
    not_learned: tuple[str, ...] = ()
    """Unwanted traits that the pilot did not learn at this budget."""
    candidates: tuple[Candidate, ...] = ()
    rounds: tuple[tuple[Standing, ...], ...] = ()
    choice: Choice | None = None
    looks: str = ""
    """How seeds were added."""
    seconds: float = 0.0


def write(folder: Path, told: Told) -> None:
    """Write `card.md`, then `protect.json`."""
    write_text(folder / "card.md", card(told))
    held: dict[str, Any] = {
        "format": FORMAT,
        "model": told.model,
        "data": Path(told.data).name,
        "unwanted": list(told.unwanted),
        "forecast": told.forecast,
        "rows": told.rows,
        "rows_to_blame": told.blamed,
        "stopped": told.stopped or None,
        "cannot_be_forecast": list(told.cannot),
        "not_learned": list(told.not_learned),
        "candidates": {one.name: one.said for one in told.candidates},
        "controls": {one.name: _own_controls(one, told.candidates) for one in told.candidates if not _is_control(one)},
        "race": [[asdict(one) for one in found] for found in told.rounds],
        "choice": told.choice.winner if told.choice is not None and told.choice.helped else None,
        "evidence": None if told.choice is None else told.choice.as_dict(),
        "looks": told.looks or None,
        "seconds": round(told.seconds, 1),
        "command": told.command,
    }
    write_text(folder / "protect.json", json.dumps(held, indent=1, ensure_ascii=False, allow_nan=False))


def card(told: Told) -> str:
    """The card as Markdown; the answer comes first."""
    parts = [f"# {headline(told)}"]
    if told.choice is not None:
        parts += [
            _table(told.choice),
            _price(told),
            f"The report, which asks for all sets: {visible(told.choice.report)}",
        ]
    if told.not_learned:
        named = listed([words(name) for name in told.not_learned])
        parts.append(
            f"At this budget the unguarded baseline did not learn {named}, so nothing can be said of a guard against it; train "
            f"longer to decide."
        )
    if told.unwanted:
        found = "\n".join(f"- **{words(name)}**: {visible(told.forecast.get(name, ''))}" for name in told.unwanted)
        parts.append(
            f"## What the forecast found\n\n{found}\n\n{told.blamed} of {told.rows} rows show one of them; which, with a score "
            f"each, is in `forecast/rows.parquet`."
        )
    if told.rounds:
        parts.append(_race(told))
    parts.append(
        f"## Make it again\n\n```bash\n{told.command}\n```\n\n`experiment.yaml` is an ordinary experiment: `tropism run` on it "
        f"is the confirmation, with `--quick` the race."
        if told.candidates
        else f"## Make it again\n\n```bash\n{told.command}\n```"
    )
    return "\n\n".join(parts) + "\n"


def headline(told: Told) -> str:
    """The answer in a sentence or two."""
    if told.stopped:
        return visible(told.stopped)
    if told.choice is None:
        return "There is nothing to protect from: the forecast finds none of the traits in this data." + _cannot(told)
    said = {one.name: one.said for one in told.candidates}.get(told.choice.winner, told.choice.winner)
    traits = listed([words(name) for name in told.unwanted if name not in told.not_learned])
    choice = told.choice
    if not choice.helped:
        return (
            f"No guard was shown to help against {traits}; the best was {said}: {choice.against}. There is no adapter: mend the "
            f"data instead, beginning with the rows to blame."
        )
    out = [line.metric for line in choice.traits() if line.shown is Shown.OUT]
    only = [name for name in choice.lowered if name not in out]
    does = [f"keeps {listed([words(name) for name in out])} out"] if out else []
    does += [f"lowers {listed([words(name) for name in only])}"] if only else []
    left = [words(line.metric) for line in choice.traits() if line.metric not in choice.lowered]
    end = f" That it lowers {listed(left)} is not shown." if left else ""
    return f"{said[:1].upper() + said[1:]} {' and '.join(does)}; the skill is {choice.skill}.{end}{_cannot(told)}"


def _cannot(told: Told) -> str:
    named = listed([words(name) for name in told.cannot])
    return f" Of {named} nothing can be said on this model." if named else ""


def _table(choice: Choice) -> str:
    head = "| metric | asked on | untrained | before (no guard) | after | difference | shown |\n|---|---|---|---|---|---|---|"
    return f"{head}\n" + "\n".join(_row(one, choice.skill) for one in choice.lines)


def _row(one: Line, skill: str) -> str:
    interval = span(one.low, one.high, signed=True) or "(no interval)"
    mark = {"unwanted": " ↓", "wanted": " ↑"}.get(one.mark, "")
    cells = (
        "–" if one.untrained is None else rate(one.untrained),
        rate(one.before),
        f"**{rate(one.after)}**",
        f"{rate(one.difference, signed=True)} {interval}",
        one.shown or skill,
    )
    return f"| {words(one.metric)}{mark} | {words(one.eval_set)} | {' | '.join(cells)} |"


def _price(told: Told) -> str:
    assert told.choice is not None
    seeds = max(one.seeds for one in told.choice.lines)
    return (
        f"Means over {seeds} fresh seeds on prompts that no selection saw; ↓ lower is better, ↑ higher; intervals of the "
        f"difference over seeds and prompts, each metric for itself. {told.looks}".strip()
    )


def _race(told: Told) -> str:
    said = {one.name: one.said for one in told.candidates}
    lines = ["| round | candidate | share of the traits gone | change of the skill |", "|---|---|---|---|"]
    for number, found in enumerate(told.rounds, start=1):
        for one in found:
            control = " (control)" if one.control else ""
            lines.append(
                f"| {number} | {said.get(one.name, one.name)}{control} | {one.removed:.0%} | {rate(one.skill, signed=True)} |"
            )
    shown = ["\n".join(lines), _specific(told.rounds), _paired(told.rounds[0])]
    return "\n\n".join(["## The race, on the development prompts", *shown])


def _is_control(one: Candidate) -> bool:
    return one.name in CONTROLS or one.name == BASELINE.name


def _own_controls(one: Candidate, every: Sequence[Candidate]) -> list[str]:
    """The controls of a guard that are among the candidates."""
    names = {other.name for other in every}
    return [control for control in controls_of(one.name) if control in names]


def _paired(found: Sequence[Standing]) -> str:
    """Each guard of the first round beside what is like it and does not aim."""
    by_name = {one.name: one for one in found}
    lines = ["| guard | share of the traits gone | of its own control |", "|---|---|---|"]
    for one in found:
        if not one.control:
            own = [by_name[name] for name in controls_of(one.name) if name in by_name]
            beside = ", ".join(f"{words(control.name)} {control.removed:.0%}" for control in own)
            lines.append(f"| {words(one.name)} | {one.removed:.0%} | {beside or 'it has none'} |")
    return "\n".join(lines)


def _specific(rounds: Sequence[Sequence[Standing]]) -> str:
    first = rounds[0]
    guards, controls = [one for one in first if not one.control], [one for one in first if one.control]
    if not guards or not controls:
        return "No control finished, so how specific the effect is cannot be said."
    best, strongest = max(one.removed for one in guards), max(controls, key=lambda one: one.removed)
    if best > 0 and strongest.removed >= MUCH * best:
        return (
            f"A control, {words(strongest.name)}, does at least half of what the best guard does: the effect is not specific to "
            f"the guard."
        )
    return f"The strongest control, {words(strongest.name)}, takes {strongest.removed:.0%} away; the best guard {best:.0%}."
