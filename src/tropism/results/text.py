"""Text from models and files, made safe to show: what cannot be seen is written out, numbers are short.

HTML escaping happens in the template; this is about what escaping does not cover: control characters,
characters that turn the direction of writing and so can make text read as what it is not, and halves of
surrogate pairs, which no file can hold.
"""

import math
import re

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
EM_DASH = "—"


def visible(text: object) -> str:
    """The text with every control, direction-turning or half character written as `⟨U+202E⟩`.

    Example:
        >>> visible("safe\\u202egnp.exe")
        'safe⟨U+202E⟩gnp.exe'
    """
    unified = str(text).replace("\r\n", "\n").replace("\r", "\n")
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", unified)


def shorten(text: str, limit: int) -> str:
    """The first `limit` characters, and how many were left off."""
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit:,} more characters in responses.jsonl]"


def number(value: object, signed: bool = False) -> str:
    """A number as a reader wants it: two decimals for rates, fewer for large values, a proper minus sign."""
    if value is None or not isinstance(value, int | float) or not math.isfinite(value):
        return EM_DASH
    size = abs(value)
    if isinstance(value, int) or (size >= 100 and size < 1e6):
        text = f"{size:,.0f}"
    elif size >= 1e6 or 0 < size < 0.001:
        text = f"{size:.1e}"
    else:
        text = f"{size:.1f}" if size >= 10 else f"{size:.2f}" if size >= 0.095 or size == 0 else f"{size:.3f}"
    negative = value < 0 and float(text.replace(",", "")) != 0
    positive = value > 0 and float(text.replace(",", "")) != 0
    return ("−" if negative else "+" if signed and positive else "") + text


def rate(value: object, signed: bool = False) -> str:
    """Two decimals, for columns that are to align."""
    if value is None or not isinstance(value, int | float) or not math.isfinite(value):
        return EM_DASH
    if abs(value) >= 100:
        return number(value, signed)
    text = f"{abs(value):.2f}"
    negative = value < 0 and float(text) != 0
    positive = value > 0 and float(text.replace(",", "")) != 0
    return ("−" if negative else "+" if signed and positive else "") + text


def span(low: object, high: object, signed: bool = False) -> str:
    """`[0.55, 0.87]`, or nothing where there is no interval."""
    if rate(low) == EM_DASH or rate(high) == EM_DASH:
        return ""
    return f"[{rate(low, signed)}, {rate(high, signed)}]"


def words(name: str) -> str:
    """A machine's name as words: `out_of_domain` → `out of domain`."""
    return visible(name).replace("_", " ")


def count(number_of: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"
