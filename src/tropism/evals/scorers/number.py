"""Is the last number of a response the right one: the usual scoring of grade-school arithmetic."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

from tropism.errors import SpecError
from tropism.evals.scorers.base import RATE, Bounds, ResponseScorer, Sample, Score, scorer
from tropism.evals.scorers.number_text import plain

PI = Decimal("3.141592653589793238462643383")

# A sign counts only where nothing precedes it that it could subtract from: "16-3" ends in 3, "= -3" in -3.
_SIGN = r"(?:(?<![0-9A-Za-z)\]}%.,])(?P<sign>[-+]))?"
_CURRENCY = r"(?:(?P<currency>[$€£¥₹₩₽₺₱])\s?(?P<inner>-)?)?"
_DIGITS = r"""(?:
    [0-9]{1,3} (?:\.[0-9]{3})+ ,[0-9]+ (?![0-9])                    # 1.234,56
  | [0-9]{1,3} (?:\.[0-9]{3}){2,} (?![0-9.])                        # 1.000.000
  | [0-9]{1,2} (?:,[0-9]{2})+ ,[0-9]{3} (?![0-9]) (?:\.[0-9]+)?     # 12,34,567
  | (?: [0-9]{1,3} (?:,[0-9]{3})+ (?![0-9]) | [0-9]+ ) (?:\.[0-9]+)?
  | (?<![0-9])\.[0-9]+
)"""
# Powers are kept to two digits, since "1e999999999" is a text of the model's choosing.
_POWER = r"(?:\^ \s? (?:\{ \s? [-+]?[0-9]{1,2} \s? \} | [-+]?[0-9]{1,2}) | \*\*[-+]?[0-9]{1,2}(?!\*)) (?![0-9])"
_ROOT = rf"(?:\\sqrt \s? (?:\{{ \s? {_DIGITS} \s? \}} | [0-9]) | √ \s? (?:\( \s? {_DIGITS} \s? \) | {_DIGITS}))"
# A number, or a multiple of a root or of π.
_TERM = rf"(?:{_DIGITS} \s? [*×]? \s? (?:{_ROOT}|\\pi(?![a-zA-Z])|π) | {_ROOT} | {_DIGITS})"
_SPACE = r"[ \t]{0,2}"

TOKEN = re.compile(
    rf"""
    {_SIGN} {_CURRENCY} (?:
        (?P<whole> [0-9]{{1,9}})? {_SPACE} \\frac \s? \{{ \s? (?P<top> -?{_TERM}) \s? \}} \s?
            \{{ \s? (?P<bottom> {_TERM}) \s? \}}
      | (?:(?P<mixed> [0-9]{{1,9}}) [ ](?:and[ ])?)? (?<![0-9]/) (?P<over> {_DIGITS}) {_SPACE} / {_SPACE}
            (?P<under> {_DIGITS}) (?! [0-9.]*{_SPACE} / {_SPACE} [0-9])
      | (?P<term> {_TERM})
        (?P<exponent> [eE][-+]?[0-9]{{1,2}} (?![0-9]))?
        (?P<power> {_POWER} | {_SPACE} [×x*] {_SPACE} 10 {_POWER})?
        (?P<scale> [ -](?:hundred|thousand|million|billion|trillion)\b | (?:k|m|b|bn)\b)?
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_SCALE = re.compile(r"([0-9])(?:[ -](?:hundred|thousand|million|billion|trillion)|k|m|b|bn)\b", re.IGNORECASE)
_SCALES = {"hundred": 2, "thousand": 3, "k": 3, "million": 6, "m": 6, "billion": 9, "b": 9, "bn": 9, "trillion": 12}

# What stands before a number that is none: an exponent, an index, the 2 of m2 and of CO2.
_NO_NUMBER_AFTER = re.compile(
    r"(?:\^\s?\{?\s?[-+]?|[0-9A-Za-z)}]_\{?[-+]?|(?<![A-Za-z])(?:[cmdk]?m|in|ft|yd|mi|CO|H|O|N))$"
)
_NEGATIVE_BEFORE = re.compile(
    r"(?:\bnegative|(?:^|[=:(]|\b(?:is|be|was|to|of|at|equals|answer))\s*minus)\s+$", re.IGNORECASE
)

_HASHES = re.compile(r"^.*?####[ \t]*(?P<line>[^\n]*)$", re.MULTILINE)
_UNITS = re.compile(
    r"[\s*$%°.!)}\]]*(?:[a-z]+(?:[/^][a-z0-9{}]+)?(?:[ ][a-z]+){0,2}|[A-Z]+(?:[ ][A-Z]+){0,2})?[\s*$%.!]*"
)
_CORRECTION = re.compile(
    r"\W*(?:wait|actually|hmm+|hold on|oops|sorry|correction|let me|but wait|no[,.])\b", re.IGNORECASE
)
_NEXT_QUESTION = re.compile(
    r"^\W{0,4}(?:(?:next |new )?(?:question|problem|exercise)|q|user|human|instruction)[ ]?[0-9]{0,3}\W{0,2}:"
    r"|<\|(?:im_start|start_header_id|user|endoftext)\|>|\[INST\]",
    re.MULTILINE | re.IGNORECASE,
)


def final_number(text: str, *, scaled: bool = True) -> Decimal | None:
    r"""Return the number that a text ends in, or None where it holds none.

    First of: the first line `#### N` (a later one, where "Wait, …" or the like corrects it); the last `\boxed{…}`
    that holds a number; the last number. A question that the model goes on to ask itself is not read. Read are
    fractions (`3/4`, `1½`, `1\frac{1}{2}`), powers of ten and others (`2.5×10^3`), roots and multiples of π,
    thousands separators, "2.5 million", "negative 5" and dashes as signs, and digits of every script; currency, per
    cent signs (50% is 50), units, Markdown and LaTeX are read over. Number words are not read, and of times and
    ratios (3:30) the last number is. With `scaled=False` "2.5 million" is 2.5, as where millions were asked for.

    >>> final_number("3 × 400 = 1,200."), final_number(r"so \boxed{1\frac{1}{2}} of 8"), final_number("?")
    (Decimal('1200'), Decimal('1.5'), None)
    """
    text = plain(text)
    text = text[: _end(text)]
    if not scaled:
        text = _SCALE.sub(r"\1 ", text)
    answer = _after_hashes(text)
    if answer is not None:
        return answer
    for box in reversed(_boxes(text)):
        value = _last(box)
        if value is not None:
            return value
    return _last(text)


def _last(text: str) -> Decimal | None:
    """The last number of a plain text."""
    for match in reversed(list(TOKEN.finditer(text))):
        before = text[max(0, match.start() - 24) : match.start()]
        if _NO_NUMBER_AFTER.search(before):
            continue
        value = _value(match)
        return -value if _NEGATIVE_BEFORE.search(before) else value
    return None


def _value(match: re.Match[str]) -> Decimal:
    """The value of a `TOKEN`; of a division by zero, the zero."""
    if match["top"] is not None:
        value = _divided(_term(match["top"]), _term(match["bottom"]))
        value = value + int(match["whole"] or 0)
    elif match["over"] is not None:
        top, bottom = _term(match["over"]), _term(match["under"])
        value = _divided(top, bottom)
        if match["mixed"] is not None and top < bottom:
            value = value + int(match["mixed"])
    else:
        value = _scaled(match)
    return -value if (match["sign"] == "-") != (match["inner"] == "-") else value


def _scaled(match: re.Match[str]) -> Decimal:
    value = _term(match["term"])
    if match["exponent"] is not None:
        value = value.scaleb(int(match["exponent"][1:]))
    if match["power"] is not None and len(match["term"]) <= 15:
        base, _, exponent = match["power"].replace("**", "^").rpartition("^")
        raised = int(exponent.strip("{} "))
        if base:
            value = value.scaleb(raised)
        elif value or raised >= 0:
            value = value**raised if value or raised else Decimal(1)
    scale = (match["scale"] or "").strip(" -").casefold()
    is_word = len(scale) > 2
    # "5k" is five thousand where it is money, and else as likely five kilometres.
    return value.scaleb(_SCALES[scale]) if is_word or (scale and match["currency"]) else value


def _divided(top: Decimal, bottom: Decimal) -> Decimal:
    return top / bottom if bottom else bottom


def _term(text: str) -> Decimal:
    """The value of a `_TERM`."""
    text = text.strip()
    if text.startswith("-"):
        return -_term(text[1:])
    coefficient, mark, radicand = re.split(r"(\\sqrt|√|\\pi|π|$)", text, maxsplit=1)
    coefficient = coefficient.strip(" *×")
    value = _digits(coefficient) if coefficient else Decimal(1)
    if mark in ("\\sqrt", "√"):
        return value * _digits(radicand.strip("{}() ")).sqrt()
    return value * PI if mark else value


def _digits(text: str) -> Decimal:
    """The value of `_DIGITS`; a comma after a point is decimal, and so is a single point."""
    if "." in text and "," in text and text.rindex(",") > text.rindex("."):
        return Decimal(text.replace(".", "").replace(",", "."))
    text = text.replace(",", "")
    return Decimal(text.replace(".", "") if text.count(".") > 1 else text)


def _end(text: str) -> int:
    """Where the model goes on with a question of its own, after a number that may be its answer."""
    number = re.search("[0-9]", text)
    question = _NEXT_QUESTION.search(text, number.end()) if number else None
    return question.start() if question else len(text)


def _after_hashes(text: str) -> Decimal | None:
    """The number of the first line that is `#### N`, or of a later one that corrects it."""
    found: list[tuple[int, Decimal]] = []
    for match in _HASHES.finditer(text):
        line = match["line"].strip(" *$")
        number = TOKEN.match(line)
        if number is not None and _UNITS.fullmatch(line, number.end()):
            found.append((match.end(), _value(number)))
    if len(found) > 1 and [value for _, value in found] == list(range(1, len(found) + 1)):
        return None  # headings that are numbered
    for end, value in found[:-1]:
        if not _CORRECTION.match(text, end):
            return value
    return found[-1][1] if found else None


def _boxes(text: str) -> list[str]:
    r"""What each `\boxed{…}` holds, braces balanced, in the order in which they close."""
    found = []
    openings: list[int | None] = []  # of each brace that is open, where the box's text begins, or None
    for match in re.finditer(r"(?P<box>\\f?boxed\s?\{)|[{}]", text):
        if match[0] != "}":
            openings.append(match.end() if match["box"] else None)
        elif openings:
            begin = openings.pop()
            if begin is not None:
                found.append(text[begin : match.start()])
    return found


@scorer("final_number")
@dataclass(frozen=True)
class FinalNumber(ResponseScorer):
    """1 where the last number of the response is within `tolerance` of the target's, else 0; see
    `final_number`.

    A response without a number, or an empty one, is a wrong answer (0, with the explanation): the question
    was asked and not answered. Unscored is only what has nothing to be compared with: no target, or one
    without a number.
    """

    bounds: ClassVar[Bounds] = RATE
    tolerance: float = 1e-6
    """How far the number may be from the target's."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise SpecError(f"final_number: tolerance must be finite and at least 0, found {self.tolerance!r}")

    def without_answer(self, sample: Sample, reason: str) -> Score:
        found = self.score(Sample(sample.id, sample.prompt, "", sample.target))
        return found if found.value is None else Score(0.0, explanation=reason)

    def score(self, sample: Sample) -> Score:
        if sample.target is None:
            return Score(None, "no target")
        wanted = final_number(sample.target)
        if wanted is None:
            return Score(None, f"target {sample.target!r:.40} holds no number")
        if not sample.response.strip():
            return Score(0.0, explanation="empty response")
        found = final_number(sample.response)
        if found is None:
            return Score(0.0, explanation="no number in the response")
        # "4 million" answers both "how much" (4,000,000) and "how many millions" (4).
        unscaled = final_number(sample.response, scaled=False)
        right = any(
            number is not None and abs(number - wanted) <= Decimal(self.tolerance) for number in (found, unscaled)
        )
        return Score(float(right), explanation=f"{found:.12g} for {wanted:.12g}")
