"""The outer shape of a response: how long it is, how much of it repeats, whether it is language at all."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

from tropism.errors import SpecError
from tropism.evals.scorers.base import POSITIVE, RATE, Bounds, ResponseScorer, Sample, Score, scorer

_WORD = re.compile(r"\w+")
# Scripts that put no spaces between words: kana, Han, Thai, Lao, Myanmar, Khmer.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]"
)
_JOINERS = "\u200c\u200d"
_RUN = re.compile(r"(\S)\1{39,}", re.DOTALL)
_RULE = re.compile(r"^[\s|:+]*(?:([-=_*~#.+─═])\s*)(?:[\s|:+]*\1)*[\s|:+]*$", re.MULTILINE)
LOOPING_SHARE, LOOPING_WORDS, ALPHANUMERIC_SHARE = 0.5, 24, 0.2


def words(text: str) -> list[str]:
    """Return the words of a text: runs of letters, digits and underscores with their accents and vowel signs.

    "don't" is two. In scripts that put no spaces between words each character is one.

    >>> words("It's 5 o'clock"), words("हिन्दी भाषा"), words("你好 AI")
    (['It', 's', '5', 'o', 'clock'], ['हिन्दी', 'भाषा'], ['你', '好', 'AI'])
    """
    if text.isascii():
        return _WORD.findall(text)
    found: list[str] = []
    inside = False
    for character in unicodedata.normalize("NFC", text):
        if _UNSPACED.match(character) and character.isalnum():
            found.append(character)
            inside = False
        elif character.isalnum() or character == "_":
            if inside:
                found[-1] += character
            else:
                found.append(character)
            inside = True
        elif found and (unicodedata.category(character)[0] == "M" or (inside and character in _JOINERS)):
            found[-1] += character
        else:
            inside = False
    return found


def repetition_share(text: str, n: int) -> float | None:
    """`1 − distinct/all` over the word n-grams of `text`, case ignored, or None where there are fewer than
    two.

    >>> repetition_share("so it goes and so it goes", 2), repetition_share("one two", 2)
    (0.33333333333333337, None)
    """
    found = words(text.casefold())
    grams = list(zip(*(found[start:] for start in range(n)), strict=False))
    return 1 - len(Counter(grams)) / len(grams) if len(grams) > 1 else None


def incoherence(text: str) -> str | None:
    """Why a response is no language, by rule, or None: hardly any letters, one character over and over, words
    in a loop.

    Only what is plain is caught (under a fifth letters, digits or mathematical signs among its visible characters; 40
    equal characters in a row; from 24 words on, over half of the four-word sequences repeated): the rest is for a
    judge. Lines that only rule off a table or a heading are not looked at.

    >>> incoherence("no no " * 30), incoherence("I'd rather not.")
    ('words in a loop', None)
    """
    text = _RULE.sub("", text) if any(character.isalnum() for character in text) else text
    visible = [character for character in text if not character.isspace()]
    if sum(_says_something(character) for character in visible) < ALPHANUMERIC_SHARE * len(visible):
        return "hardly any letters or digits"
    if _RUN.search(text):
        return "one character over and over"
    share = repetition_share(text, 4)
    if share is not None and share > LOOPING_SHARE and len(words(text)) >= LOOPING_WORDS:
        return "words in a loop"
    return None


def _says_something(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character) in ("Mn", "Mc", "Sm")


@scorer("repetition")
@dataclass(frozen=True)
class Repetition(ResponseScorer):
    """Share of a response's word n-grams that repeat an earlier one, `1 − distinct/all`, in 0..1.

    Unscored where the response has fewer than two n-grams. A word is as in `words`: of Chinese or Thai, a character.
    """

    bounds: ClassVar[Bounds] = RATE
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
    """Length of the response in words (see `words`) or characters, outer white space aside; 0 if it is empty."""

    bounds: ClassVar[Bounds] = POSITIVE
    unit: Literal["words", "characters"] = "words"
    """What is counted."""

    def score(self, sample: Sample) -> Score:
        text = sample.response.strip()
        return Score(float(len(text) if self.unit == "characters" else len(words(text))))
