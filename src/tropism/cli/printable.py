"""Print to a terminal or a pipe that cannot show every character: a Windows code page, an ASCII locale."""

import codecs
import io
import sys
from typing import Any

HANDLER = "tropism-printable"

SPELT = {
    "↓": "v", "↑": "^", "→": "->", "←": "<-", "✓": "+", "✗": "x", "•": "*", "…": "...", "·": "-", "–": "-", "—": "-",
    "−": "-", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "×": "x", "√": "sqrt", "Δ": "delta", "α": "alpha", "γ": "gamma",
    "κ": "kappa", "ρ": "rho", "π": "pi", "φ": "phi", "‖": "||", "⟨": "<", "⟩": ">", "²": "^2", "‘": "'", "’": "'",
    "“": '"', "”": '"', "│": "|", "─": "-", "┼": "+", "━": "-", "╸": "-", "╺": "-",
}  # fmt: skip
"""What our own output has beyond ASCII, as plain text."""


def make_printable() -> None:
    """Have standard output and error replace what their encoding lacks, where it would raise `UnicodeEncodeError`.

    What is in `SPELT` is written so, anything else as `\\uXXXX`. Streams in UTF-8 are left alone.
    """
    codecs.register_error(HANDLER, _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors=HANDLER)


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_plain(character, error.encoding) for character in lacking), error.end


def _plain(character: str, encoding: str) -> str:
    spelt: str = SPELT.get(character, character)
    escaped: Any = spelt.encode(encoding, errors="backslashreplace").decode(encoding)
    return str(escaped)
