"""The forecast as one HTML file that opens offline: verdicts first, then each trait's evidence and the rows to blame."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2

from tropism.atomic import write_text
from tropism.data.chats import Example
from tropism.forecasting.found import Forecast, TraitForecast
from tropism.forecasting.verdict import Outcome
from tropism.results.text import number, rate, shorten, span, visible, words

ROWS_SHOWN = 5
LONGEST = 600
WIDTH, DOMAIN = 220.0, (-0.5, 1.5)
"""The strip of a dose: its width, and the doses at its ends."""

SAYS = {
    Outcome.EXPECTED: "This data will teach",
    Outcome.POSSIBLE: "This data may teach",
    Outcome.CANNOT: "Cannot be forecast on this model",
}


@dataclass(frozen=True)
class Row:
    """One row of the data, as the page shows it."""

    line: int
    score: str
    prompt: str
    response: str


@dataclass(frozen=True)
class View:
    """One trait, laid out."""

    name: str
    description: str
    outcome: str
    because: str
    probability: str
    dose: str
    interval: str
    strip: tuple[float, float, float] | None
    """Low, value and high in the strip's own units."""
    rate: str
    own_rate: str
    cosine: str
    predicted: str
    rows: tuple[Row, ...]


def write(found: Forecast, examples: Sequence[Example], target: Path, *, data: str) -> Path:
    """Write the page; text from the data is escaped, and control characters are written out."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = (files("tropism.forecasting") / "page.html.j2").read_text(encoding="utf-8")
    css = (files("tropism.reports") / "templates" / "report.css").read_text(encoding="utf-8")
    html = environment.from_string(source).render(
        css=css,
        model=visible(found.model),
        data=visible(Path(data).name),
        headline=headline(found),
        views=[_view(one, found, examples) for one in _ordered(found)],
        measured=len(found.sample.lines),
        rows=found.sample.rows,
        own=len(found.sample.own),
        tiers=", ".join(words(tier) for tier in found.tiers),
        open_shifts=[
            (f"{one.share:.0%}", [_row(line, None, examples) for line in one.lines]) for one in found.open_shifts
        ],
        zero=_x(0.0),
        one=_x(1.0),
        width=WIDTH,
    )
    write_text(target, html)
    return target


def headline(found: Forecast) -> str:
    """The forecast in one or two sentences."""
    by = {outcome: [words(one.trait.name) for one in found.traits if one.outcome is outcome] for outcome in Outcome}
    parts = [f"{SAYS[outcome]}: {', '.join(by[outcome])}." for outcome in SAYS if by[outcome]]
    if not by[Outcome.EXPECTED] and not by[Outcome.POSSIBLE]:
        parts.insert(0, "Nothing in this data pushes toward any of the traits that could be measured.")
    return " ".join(parts)


def _ordered(found: Forecast) -> list[TraitForecast]:
    order = [Outcome.EXPECTED, Outcome.POSSIBLE, Outcome.CANNOT, Outcome.NONE]
    return sorted(found.traits, key=lambda one: (order.index(one.outcome), -(one.probability or 0.0)))


def _view(one: TraitForecast, found: Forecast, examples: Sequence[Example]) -> View:
    p = one.projected
    shown: list[Row] = []
    if one.scores is not None and one.outcome in (Outcome.EXPECTED, Outcome.POSSIBLE):
        order = sorted(range(len(one.scores)), key=lambda i: -float(one.scores[i]))[:ROWS_SHOWN]  # type: ignore[index]
        shown = [_row(found.sample.lines[i], float(one.scores[i]), examples) for i in order]
    return View(
        name=words(one.trait.name),
        description=visible(one.trait.description),
        outcome=str(one.outcome),
        because=visible(one.because),
        probability="–" if one.probability is None else f"{one.probability:.0%}",
        dose="–" if p is None else rate(p.dose, signed=True),
        interval="" if p is None else span(p.dose_low, p.dose_high, signed=True),
        strip=None if p is None else (_x(p.dose_low), _x(p.dose), _x(p.dose_high)),
        rate="–" if one.rated is None else f"{one.rated.rows:.0%}",
        own_rate="–" if one.rated is None else f"{one.rated.own:.0%}",
        cosine="–" if one.pulled is None else number(one.pulled.cosine, signed=True),
        predicted="–"
        if one.dry is None
        else f"{rate(one.dry.rise, signed=True)} {span(one.dry.low, one.dry.high, signed=True)}",
        rows=tuple(shown),
    )


def _row(line: int, score: float | None, examples: Sequence[Example]) -> Row:
    example = examples[line]
    asked = str(example.prompt[-1]["content"]) if example.prompt else ""
    return Row(line, "" if score is None else rate(score, signed=True), _short(asked), _short(example.response or ""))


def _short(text: str) -> str:
    return visible(shorten(text, LONGEST))


def _x(dose: float) -> float:
    low, high = DOMAIN
    return round(WIDTH * (min(high, max(low, dose)) - low) / (high - low), 1)
