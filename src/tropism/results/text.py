"""Text from models and files, made safe to show, and numbers as a reader wants them.

The template escapes HTML. This module covers what escaping does not: control characters, characters that turn the
direction of writing and so can make a text read as what it is not, and halves of surrogate pairs, which no file can
hold. They are written out.
"""

import math
import re
from collections.abc import Sequence

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
EM_DASH = "—"


def visible(text: object) -> str:
    """Write every control, direction-turning or half character of the text as `⟨U+202E⟩`.

    Example:
        >>> visible("safe\\u202egnp.exe")
        'safe⟨U+202E⟩gnp.exe'
    """
    # Line ends of three systems become one; everything else that cannot be seen is spelled out.
    unified = str(text).replace("\r\n", "\n").replace("\r", "\n")
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", unified)


def shorten(text: str, limit: int) -> str:
    """Return the first `limit` characters, and say how many were left off."""
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit:,} more characters in responses.jsonl]"


def number(value: object, signed: bool = False) -> str:
    """Write a number as a reader wants it: two decimals for rates, fewer for large values, a proper minus sign."""
    if value is None or not isinstance(value, int | float) or not math.isfinite(value):
        return EM_DASH
    size = abs(value)
    if isinstance(value, int) or 100 <= size < 1e6:
        text = f"{size:,.0f}"
    elif size >= 1e6 or 0 < size < 0.001:
        text = f"{size:.1e}"
    elif size >= 10:
        text = f"{size:.1f}"
    else:
        # A third decimal where two would leave one digit; the limit is what rounds to 0.1.
        text = f"{size:.2f}" if size >= 0.095 or size == 0 else f"{size:.3f}"
    return _sign(value, text, signed) + text


def rate(value: object, signed: bool = False) -> str:
    """Write a number with two decimals, for columns that align."""
    if value is None or not isinstance(value, int | float) or not math.isfinite(value):
        return EM_DASH
    if abs(value) >= 100:
        return number(value, signed)
    text = f"{abs(value):.2f}"
    return _sign(value, text, signed) + text


def _sign(value: float, text: str, signed: bool) -> str:
    """The sign of a value whose size is written as `text`; what is written as zero has none."""
    if float(text.replace(",", "")) == 0:
        return ""
    if value < 0:
        return "−"
    return "+" if signed else ""


def span(low: object, high: object, signed: bool = False) -> str:
    """Write `[0.55, 0.87]`, or nothing where there is no interval."""
    if rate(low) == EM_DASH or rate(high) == EM_DASH:
        return ""
    return f"[{rate(low, signed)}, {rate(high, signed)}]"


def words(name: str) -> str:
    """Write a name as words: `out_of_domain` → `out of domain`."""
    return visible(name).replace("_", " ")


def count(number_of: int, noun: str) -> str:
    """Write `1 seed`, `3 seeds`."""
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Write `a`, `a and b`, `a, b and c`."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
