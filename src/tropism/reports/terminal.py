"""Print the report's first screen in a terminal: the answer, what the analyses found, and conditions × metrics."""

from collections.abc import Iterator

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tropism.results.caveats import caveats
from tropism.results.folder import ExperimentFolder
from tropism.results.summary import summary_table
from tropism.results.text import rate, span, visible, words
from tropism.results.verdict import Sentence, answer

_STYLE = {"good": "cyan", "bad": "dark_orange"}
_ARROW = {"unwanted": "↓ unwanted", "wanted": "↑ wanted", "": ""}
CONDITION = "condition"
NONE = Text("—", style="dim")
GAP = 3
"""What rich puts between two columns."""
_Arms = list[tuple[str, pd.DataFrame]]
_Columns = list[list[Text]]


def print_report(folder: ExperimentFolder, console: Console | None = None) -> None:
    """Print an experiment's question, answer, table and caveats: what `tropism run` ends with."""
    summary = summary_table(folder.results, folder.experiment, folder.scores, folder.look)
    console = console or Console()
    console.print(render(folder, summary, console.width))


def render(folder: ExperimentFolder, summary: pd.DataFrame, width: int) -> RenderableType:
    """Return the same for rich to print, for a terminal of so many columns."""
    parts: list[RenderableType] = []
    if folder.experiment.get("question"):
        parts.append(Text(visible(folder.experiment["question"]), style="bold"))
    parts.append(_sentence(answer(summary, folder.experiment).headline))
    parts += [Text(f"{visible(one.title)} {visible(one.summary)}") for one in folder.analyses if one.claims]
    for drawn in tables(summary, width):
        parts += [drawn, Text("")]
    parts += [Text(f"• {caveat}", style="dim") for caveat in caveats(folder, summary)]
    return Group(*parts)


def tables(summary: pd.DataFrame, width: int) -> Iterator[Table]:
    """Lay out a row per arm; each cell has the value with its interval, and the difference to the baseline beneath.

    Metrics that do not fit beside each other go into further tables, each with the arms that have one of them.
    """
    arms = [(words(str(arm)), mine) for arm, mine in summary.groupby("arm", sort=False)]
    first = max((cell_len(name) for name, _ in arms), default=0)
    drawn: list[list[Text]] = []
    room = 0
    for key in summary[["metric", "eval_set", "mark"]].drop_duplicates().itertuples(index=False, name=None):
        column = _column(key, arms)
        needed = GAP + max(cell_len(line) for text in column for line in text.plain.split("\n"))
        if drawn and needed > room:
            yield _table(arms, drawn)
            drawn = []
        if not drawn:
            room = width - max(first, len(CONDITION))
        drawn.append(column)
        room -= needed
    if drawn:
        yield _table(arms, drawn)


def _column(key: tuple[str, str, str], arms: _Arms) -> list[Text]:
    """The heading and a cell per arm."""
    metric, on, mark = key
    heading = Text(f"{words(metric)}\n{words(on)}")
    if mark:
        heading.append(f"\n{_ARROW[mark]}", style="dim")
    found = [mine[(mine["metric"] == metric) & (mine["eval_set"] == on)] for _, mine in arms]
    return [
        heading,
        *(NONE if rows.empty else _cell({str(key): value for key, value in rows.iloc[0].items()}) for rows in found),
    ]


def _table(arms: _Arms, columns: _Columns) -> Table:
    drawn = Table(show_edge=False, pad_edge=False, header_style="bold", row_styles=("",))
    for heading in (Text(CONDITION), *(column[0] for column in columns)):
        drawn.add_column(heading)
    for index, (name, _) in enumerate(arms, start=1):
        cells = [column[index] for column in columns]
        if any(cell is not NONE for cell in cells):
            drawn.add_row(Text(name), *cells)
    return drawn


def _cell(row: dict[str, object]) -> Text:
    text = Text(rate(row["value"]))
    interval = span(row["low"], row["high"])
    if interval:
        text.append(f" {interval}", style="dim")
    low, high = row["difference_low"], row["difference_high"]
    if rate(row["difference"]) != "—":
        tone = "dim"
        if row["mark"] and isinstance(low, float) and isinstance(high, float) and (low > 0 or high < 0):
            tone = _STYLE["good" if (high < 0) == (row["mark"] == "unwanted") else "bad"]
        text.append(f"\n{rate(row['difference'], signed=True)} {span(low, high, signed=True)}", style=tone)
    return text


def _sentence(found: Sentence) -> Text:
    text = Text()
    for part, strong in found.parts:
        text.append(visible(part), style="bold" if strong else "")
    return text
