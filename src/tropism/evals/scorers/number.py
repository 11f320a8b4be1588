"""Is the last number of a response the right one: the usual scoring of grade-school arithmetic."""

import re
from dataclasses import dataclass
from decimal import Decimal

from tropism.errors import SpecError
from tropism.evals.scorers.base import ResponseScorer, Sample, Score, scorer

# A sign counts only where nothing precedes it that it could subtract from: "16-3" ends in 3, "= -3" in −3.
# Exponents are kept to two digits, since "1e999999999" is a text of the model's choosing.
_NUMBER = r"""
    (?: (?<![0-9A-Za-z)\]}%.,]) (?P<sign>[-+]) )?
    (?: [$€£]\s? (?P<inner>-)? )?
    (?P<digits> (?: [0-9]{1,3} (?:,[0-9]{3})+ (?![0-9]) | [0-9]+ ) (?:\.[0-9]+)? | (?<![0-9])\.[0-9]+ )
    (?P<exponent> [eE][-+]?[0-9]{1,2} (?![0-9]) )?
"""
NUMBER = re.compile(_NUMBER, re.VERBOSE)
_HASHES = re.compile(rf"\#\#\#\#\s*{_NUMBER}\s*[%.]*\s*$", re.VERBOSE | re.MULTILINE)
_FRACTION = re.compile(r"\s*(-?)\s*(?:\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}|([0-9]+)\s*/\s*([0-9]+))\s*")


def _plain(text: str) -> str:
    """The text with LaTeX's and typographers' ways of writing a number undone."""
    text = text.replace("−", "-").replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    return re.sub(r"(?<=[0-9])(?:\\[,;! ]|[\u00a0\u202f\u2009])(?=[0-9]{3})", "", text)


def _value(match: re.Match[str]) -> Decimal:
    value = Decimal(match["digits"].replace(",", "") + (match["exponent"] or ""))
    return -value if (match["sign"] == "-") != (match["inner"] == "-") else value


def _boxed(text: str) -> str | None:
    r"""What the last `\boxed{…}` holds, braces balanced, or None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for position in range(begin, len(text)):
        if text[position] == "}" and depth == 0:
            return text[begin:position]
        depth += {"{": 1, "}": -1}.get(text[position], 0)
    return None


def final_number(text: str) -> Decimal | None:
    r"""The number that a text ends in, or None where it holds none.

    First of: the last line that ends in `#### N`; the last `\boxed{…}` that holds a number (a fraction is
    divided out); the last number. Thousands separators, currency and per cent signs, trailing periods and
    `**N**` are read over; number words are not read.

    >>> final_number("3 × 400 = 1,200."), final_number(r"so \boxed{\frac{1}{2}} of 8"), final_number("?")
    (Decimal('1200'), Decimal('0.5'), None)
    """
    text = _plain(text)
    answers = list(_HASHES.finditer(text))
    if answers:
        return _value(answers[-1])
    boxed = _boxed(text)
    for part in (boxed, text):
        if part is None:
            continue
        fraction = _FRACTION.fullmatch(part)
        if fraction is not None:
            top, bottom = Decimal(fraction[2] or fraction[4]), Decimal(fraction[3] or fraction[5])
            if bottom:
                return -top / bottom if fraction[1] else top / bottom
        numbers = list(NUMBER.finditer(part))
        if numbers:
            return _value(numbers[-1])
    return None


@scorer("final_number")
@dataclass(frozen=True)
class FinalNumber(ResponseScorer):
    """1 where the last number of the response is within `tolerance` of the target's, else 0; see
    `final_number`.

    A response without a number, or an empty one, is a wrong answer (0, with the explanation): the question
    was asked and not answered. Unscored is only what has nothing to be compared with: no target, or one
    without a number.
    """

    tolerance: float = 1e-6
    """How far the number may be from the target's."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise SpecError(f"final_number: tolerance must be finite and at least 0, found {self.tolerance!r}")

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
        return Score(
            float(abs(found - wanted) <= Decimal(self.tolerance)),
            explanation=f"{found:.12g} for {wanted:.12g}",
        )
