"""A text with the ways of writing a number made one: LaTeX's, typographers', other scripts' digits."""

import html
import re
import unicodedata

_DASHES = dict.fromkeys(map(ord, "−–‒‐‑﹣－"), "-")
_INVISIBLE = dict.fromkeys([0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x00AD, 0xFE0F, 0x20E3])
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_MARKS = _FULL_WIDTH | _DASHES | _INVISIBLE | {ord("⁄"): "/", ord("∕"): "/", ord("·"): "×", ord("⋅"): "×"}

_RAISED = {ord(raised): plain for raised, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True)}
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_LOWERED_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_OUTSIDE_ASCII = re.compile(r"[^\x00-\x7f]")
_EM_DASH_SIGN = re.compile(r"(?m)(^\s*|=\s*)[—―](?=[0-9$€£.])")

# Between a number's groups of three: LaTeX's spaces, and every space that is not the ordinary one.
_SEPARATOR = r"(?:\\[,;:! ]|[~\u00a0\u2000-\u200a\u202f\u205f\u3000'’_])"
_GROUPED = re.compile(rf"(?<![0-9.,])[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])")
_GROUPED_BY_SPACES = re.compile(r"(?<![0-9.,^_])(?<![0-9] )[0-9]{1,3}(?: [0-9]{3})+(?! ?[0-9/])")

_LATEX = (
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr)(?![a-zA-Z])"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])"), "×"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?"), "°"),
    (re.compile(r"\\([$%#&])"), r"\1"),
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname|bf|rm)\s*\{([^{}]*)\}"), r" \1 "),
)
_CENTS = re.compile(r"(?<![0-9,.])([0-9][0-9,]*+) dollars?,? and ([0-9]{1,2}) cents?\b", re.IGNORECASE)


def plain(text: str) -> str:
    r"""Return the text with full-width and other scripts' digits in ASCII, dashes as `-`, raised digits as `^{…}`,
    fractions as `a/b` or `\frac{a}{b}`, and groups of three digits closed up unless commas or points part them.

    >>> plain("１８ or 1½, 2.5·10³, 1 000 000, \\dfrac34")
    '18 or 1 1/2, 2.5×10^{3}, 1000000, \\frac{3}{4}'
    """
    if "&" in text:
        text = html.unescape(text)
    if not text.isascii():
        text = _raised(text).translate(_MARKS)
        text = _EM_DASH_SIGN.sub(r"\1-", text)
        text = _OUTSIDE_ASCII.sub(_ascii_digits, text)
    if "\\" in text:
        text = text.replace("{,}", ",")
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    text = _GROUPED.sub(lambda match: re.sub(_SEPARATOR, "", match[0]), text)
    text = _GROUPED_BY_SPACES.sub(_closed_up, text)
    return _CENTS.sub(lambda match: f"{match[1]}.{match[2]:0>2} dollars", text)


def _raised(text: str) -> str:
    text = _RAISED_RUN.sub(lambda match: "^{" + match[0].translate(_RAISED) + "}", text)
    return _LOWERED_RUN.sub("", text)


def _ascii_digits(match: re.Match[str]) -> str:
    """A digit of any script in ASCII, a character such as ½ as ` 1/2`, anything else as it is."""
    character = match[0]
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    written = unicodedata.normalize("NFKC", character)
    return " " + written.replace("⁄", "/") if "⁄" in written else character


def _closed_up(match: re.Match[str]) -> str:
    """`1 000 000` and `12 345` are numbers; `100 200 300` may as well be three, and stays."""
    groups = match[0].split(" ")
    is_one_number = len(groups[0]) < 3 or "000" in groups[1:]
    return "".join(groups) if is_one_number and groups[0] != "0" else match[0]
