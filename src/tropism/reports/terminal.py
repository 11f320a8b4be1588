"""Print the report's first screen in a terminal: the answer, and the table of conditions × metrics."""

import pandas as pd
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


def print_report(folder: ExperimentFolder, console: Console | None = None) -> None:
    """Print an experiment's question, answer, table and caveats: what `tropism run` ends with."""
    summary = summary_table(folder.results, folder.experiment, folder.scores, folder.look)
    (console or Console()).print(render(folder, summary))


def render(folder: ExperimentFolder, summary: pd.DataFrame) -> RenderableType:
    """Return the same for rich to print."""
    parts: list[RenderableType] = []
    if folder.experiment.get("question"):
        parts.append(Text(visible(folder.experiment["question"]), style="bold"))
    parts.append(_sentence(answer(summary, folder.experiment).headline))
    if not summary.empty:
        parts.append(table(summary))
    parts += [Text(f"• {caveat}", style="dim") for caveat in caveats(folder, summary)]
    return Group(*parts)


def table(summary: pd.DataFrame) -> Table:
    """Lay out a row per arm; each cell has the value with its interval, and the difference to the baseline beneath."""
    drawn = Table(show_edge=False, pad_edge=False, header_style="bold", row_styles=("",))
    drawn.add_column("condition")
    columns = list(summary[["metric", "eval_set", "mark"]].drop_duplicates().itertuples(index=False, name=None))
    for metric, on, mark in columns:
        heading = Text(f"{words(metric)}\n{words(on)}")
        if mark:
            heading.append(f"\n{_ARROW[mark]}", style="dim")
        drawn.add_column(heading)
    for arm, mine in summary.groupby("arm", sort=False):
        cells = [Text(words(str(arm)))]
        for metric, on, _ in columns:
            found = mine[(mine["metric"] == metric) & (mine["eval_set"] == on)]
            cells.append(Text("—", style="dim") if found.empty else _cell(found.iloc[0].to_dict()))
        drawn.add_row(*cells)
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
