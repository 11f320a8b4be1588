"""Scorers that compare the text of a response: `exact`, `contains`, `regex`."""

import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

from tropism.errors import SpecError
from tropism.evals.scorers.base import RATE, Bounds, ResponseScorer, Sample, Score, scorer

NO_TARGET = "no target"


_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("‘’ʼ′", "'") | dict.fromkeys("“”″", '"') | dict.fromkeys("\u00a0\u202f\u2009", " ")
)


def _compared(text: str, ignore_case: bool) -> str:
    """A text as it is compared: accents composed, quotes straight, spaces ordinary."""
    text = unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY)
    return unicodedata.normalize("NFC", text.casefold()) if ignore_case else text


@scorer("exact")
@dataclass(frozen=True)
class Exact(ResponseScorer):
    """1 where the response is the target, outer white space aside, else 0; unscored without a target.

    Curly and straight quotes, kinds of spaces, and composed and decomposed accents are the same.
    """

    bounds: ClassVar[Bounds] = RATE
    ignore_case: bool = False
    """Compare without regard to case."""

    def without_answer(self, sample: Sample, reason: str) -> Score:
        return Score(None, NO_TARGET) if sample.target is None else Score(0.0, explanation=reason)

    def score(self, sample: Sample) -> Score:
        if sample.target is None:
            return Score(None, NO_TARGET)
        found, wanted = (_compared(text.strip(), self.ignore_case) for text in (sample.response, sample.target))
        return Score(float(found == wanted))


@scorer("contains")
@dataclass(frozen=True)
class Contains(ResponseScorer):
    """1 where the response contains `text` (by default the target), else 0; unscored with neither.

    It may stand inside a word or a number ("18" in "118") unless `whole_words`. Quotes, spaces and accents are compared
    as in `exact`.
    """

    bounds: ClassVar[Bounds] = RATE
    text: str | None = None
    """What to look for; by default the target."""
    ignore_case: bool = True
    """Compare without regard to case."""
    whole_words: bool = False
    """Look for whole words alone: 18 is then not in 118."""

    def __post_init__(self) -> None:
        if self.text == "":
            raise SpecError("contains: text must not be empty, since every response contains it")

    def without_answer(self, sample: Sample, reason: str) -> Score:
        # A target was asked for and not delivered; a text of the user's own may be a trait, of which nothing is known.
        return Score(0.0, explanation=reason) if self.text is None and sample.target else Score(None, reason)

    def score(self, sample: Sample) -> Score:
        wanted = sample.target if self.text is None else self.text
        if not wanted:
            return Score(None, NO_TARGET)
        sought, response = _compared(wanted, self.ignore_case), _compared(sample.response, self.ignore_case)
        if self.whole_words:
            return Score(float(re.search(rf"(?<!\w){re.escape(sought)}(?!\w)", response) is not None))
        return Score(float(sought in response))


@scorer("regex")
@dataclass(frozen=True)
class Regex(ResponseScorer):
    """1 where Python's `re.search(pattern, response)` finds something, else 0; `.` matches newlines too."""

    bounds: ClassVar[Bounds] = RATE
    pattern: str
    """A Python regular expression."""
    ignore_case: bool = False
    """Match without regard to case."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise SpecError(f"regex: pattern {self.pattern!r} is no regular expression: {error}") from None

    def score(self, sample: Sample) -> Score:
        flags = re.DOTALL | (re.IGNORECASE if self.ignore_case else re.NOFLAG)
        match = re.search(self.pattern, sample.response, flags)
        return Score(float(match is not None), explanation=None if match is None else f"found {match[0]!r:.60}")
