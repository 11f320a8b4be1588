"""The outer shape of a response: how long it is, how much of it repeats, whether it is language at all."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from tropism.errors import SpecError
from tropism.evals.scorers.base import ResponseScorer, Sample, Score, scorer

_WORD = re.compile(r"\w+")
_RUN = re.compile(r"(\S)\1{39,}", re.DOTALL)
LOOPING_SHARE, LOOPING_WORDS, ALPHANUMERIC_SHARE = 0.5, 24, 0.2


def repetition_share(text: str, n: int) -> float | None:
    """`1 − distinct/all` over the word n-grams of `text`, case ignored, or None where there are fewer than
    two.

    >>> repetition_share("so it goes and so it goes", 2), repetition_share("one two", 2)
    (0.33333333333333337, None)
    """
    words = _WORD.findall(text.casefold())
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1 - len(Counter(grams)) / len(grams) if len(grams) > 1 else None


def incoherence(text: str) -> str | None:
    """Why a response is no language, by rule, or None: hardly any letters, one character over and over, words
    in a loop.

    Only what is plain is caught (under a fifth letters or digits among its visible characters; 40 equal
    characters in a row; from 24 words on, over half of the four-word sequences repeated): the rest is for a
    judge.

    >>> incoherence("no no " * 30), incoherence("I'd rather not.")
    ('words in a loop', None)
    """
    visible = [character for character in text if not character.isspace()]
    if sum(character.isalnum() for character in visible) < ALPHANUMERIC_SHARE * len(visible):
        return "hardly any letters or digits"
    if _RUN.search(text):
        return "one character over and over"
    share = repetition_share(text, 4)
    if share is not None and share > LOOPING_SHARE and len(_WORD.findall(text)) >= LOOPING_WORDS:
        return "words in a loop"
    return None


@scorer("repetition")
@dataclass(frozen=True)
class Repetition(ResponseScorer):
    """Share of a response's word n-grams that repeat an earlier one, `1 − distinct/all`, in 0..1.

    Unscored where the response has fewer than two n-grams. Text without spaces between words counts as one
    word.
    """

    n: int = 4
    """Words per n-gram."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SpecError(f"repetition: n must be at least 1, found {self.n!r}")

    def score(self, sample: Sample) -> Score:
        share = repetition_share(sample.response, self.n)
        return Score(None, f"fewer than {self.n + 1} words") if share is None else Score(share)


@scorer("length")
@dataclass(frozen=True)
class Length(ResponseScorer):
    """Length of the response in words or characters, outer white space aside; 0 if it is empty."""

    unit: Literal["words", "characters"] = "words"
    """What is counted."""

    def score(self, sample: Sample) -> Score:
        text = sample.response.strip()
        return Score(float(len(text) if self.unit == "characters" else len(_WORD.findall(text))))
