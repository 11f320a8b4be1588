"""What is learned of a row, drawn: coloured tokens in a terminal, or on a page that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from rich.console import Group, RenderableType
from rich.text import Text

from tropism.results.text import visible

_LEARNED = ("black on green3", "black on pale_green1")
_OPEN, _CLOSE = "⟦", "⟧"


@dataclass(frozen=True)
class Piece:
    """Some tokens as they are written, and whether they are learned."""

    text: str
    learned: bool
    tokens: int = 1


@dataclass(frozen=True)
class ShownRow:
    """A training row: its title, its tokens, and what was done to it; `refused` where it cannot be trained on."""

    title: str
    pieces: tuple[Piece, ...]
    notes: tuple[str, ...] = ()
    refused: bool = False

    @property
    def learned(self) -> int:
        """How many of its tokens are learned."""
        return sum(piece.tokens for piece in self.pieces if piece.learned)

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return sum(piece.tokens for piece in self.pieces)


def terminal(rows: Sequence[ShownRow], *, colour: bool) -> RenderableType:
    """Return the rows for a terminal; without colour, what is learned stands in ⟦ ⟧."""
    parts: list[RenderableType] = []
    for row in rows:
        parts.append(Text(visible(row.title), style="bold"))
        if not row.refused:
            parts.append(Text(f"{row.learned} of {row.tokens} tokens are learned", style="dim"))
        parts += [Text(f"{'refused' if row.refused else 'note'}: {visible(note)}") for note in row.notes]
        if row.pieces:
            parts.append(_written(row, colour))
        parts.append(Text(""))
    return Group(*parts)


def html(rows: Sequence[ShownRow], title: str) -> str:
    """Return the rows as a page; whatever a row says is shown as text."""
    from jinja2 import Environment

    source = (files("tropism.reports") / "templates" / "tokens.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(rows=rows, title=title, written=_with_line_ends)


def _written(row: ShownRow, colour: bool) -> Text:
    text, inside, shade = Text(), False, 0
    for piece in row.pieces:
        if piece.learned != inside and not colour:
            text.append(_OPEN if piece.learned else _CLOSE)
        inside = piece.learned
        shade = 1 - shade
        text.append(_with_line_ends(piece.text), style=_LEARNED[shade] if colour and piece.learned else "")
    if inside and not colour:
        text.append(_CLOSE)
    return text


def _with_line_ends(text: str) -> str:
    """The text with its line ends drawn, and other control characters written out."""
    return "↵\n".join(visible(line) for line in text.split("\n"))
