"""Learned tokens drawn: with colours, without, and on a page."""

from io import StringIO

from rich.console import Console

from tropism.reports.tokens import Piece, ShownRow, html, terminal

ROW = ShownRow(
    "row", (Piece("a\n", False), Piece("b", True), Piece("\u202ec", True, 2), Piece("d", False)), ("a note",)
)


def written(colour):
    out = StringIO()
    console = Console(file=out, force_terminal=colour, color_system="truecolor" if colour else None, width=200)
    console.print(terminal([ROW], colour=colour))
    return out.getvalue()


def test_without_colour_what_is_learned_stands_in_brackets():
    text = written(False)
    assert "a↵\n⟦b⟨U+202E⟩c⟧d" in text
    assert "3 of 5 tokens are learned" in text
    assert "note: a note" in text


def test_with_colour_what_is_learned_has_a_background_and_no_brackets():
    text = written(True)
    assert "⟦" not in text
    assert "\x1b[30;48" in text


def test_the_page_is_whole_and_escapes():
    page = html([ROW, ShownRow("<b>", (), ("why",), refused=True)], "<i>")
    assert "&lt;i&gt;" in page
    assert "&lt;b&gt;" in page
    assert page.count('class="t l"') == 2
    assert "refused: why" in page
    assert "⟨U+202E⟩" in page
