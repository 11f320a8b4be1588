"""How an object shows itself in a notebook: a title and one small table, with everything escaped."""

import html
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

LONGEST = 160
"""Of a longer text the beginning is shown."""
MOST = 40
"""Of more rows the first are shown, and how many there are."""

_CELL = "text-align:left;vertical-align:top;padding:1px 10px 1px 0"


def shown(title: str, facts: Mapping[str, Any], note: str = "") -> str:
    """Return HTML of a title and a line for each fact; facts that are None or empty are left out."""
    rows = [(name, value) for name, value in facts.items() if value not in (None, "", (), [], {})]
    return table(title, (), rows, note)


def table(title: str, heading: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> str:
    """Return HTML of a title, a table with an optional heading, and a note beneath."""
    held = list(rows)
    lines = [_row("th", heading)] if heading else []
    lines += [_row("td", row) for row in held[:MOST]]
    more = f"{len(held)} rows, the first {MOST} are shown" if len(held) > MOST else ""
    beneath = "".join(f'<div style="opacity:.7">{_text(line)}</div>' for line in (more, note) if line)
    return f"<div><b>{_text(title)}</b><table>{''.join(lines)}</table>{beneath}</div>"


def options_of(held: Any) -> dict[str, str]:
    """Return the fields of a dataclass by name, each as one line of text, apart from those that its repr leaves out."""
    return {field.name: line(getattr(held, field.name)) for field in fields(held) if field.repr}


def line(value: Any) -> str:
    """Return a value as one line; of an object of ours that holds much, its kind alone."""
    if isinstance(value, str | int | float | bool) or value is None:
        return str(value)
    if hasattr(value, "_repr_html_"):
        return type(value).__name__
    return " ".join(repr(value).split())


def running() -> bool:
    """Whether this is a notebook's kernel."""
    return "ipykernel" in sys.modules


def _row(kind: str, cells: Sequence[Any]) -> str:
    return "<tr>" + "".join(f'<{kind} style="{_CELL}">{_text(cell)}</{kind}>' for cell in cells) + "</tr>"


def _text(value: Any) -> str:
    text = line(value)
    return html.escape(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")
