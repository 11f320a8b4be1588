"""Is a response in a given language, by an offline detector (lingua, the extra `language`)."""

import functools
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from tropism.errors import SpecError
from tropism.evals.scorers.base import RATE, Bounds, ResponseScorer, Sample, Score, scorer
from tropism.optional import require

DEFAULT_AMONG = ("en", "fr", "de", "es", "it", "pt", "nl", "ru", "zh", "ja", "ko", "ar", "hi")

# Code, formulas, markup and addresses are in no language; most of their words look English.
_NO_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|\$\$.*?\$\$|\\\(.*?\\\)|\\\[.*?\\\]|\$[^$\n]{1,200}\$|\\[a-zA-Z]+"
    r"|https?://\S+|www\.\S+|\S+@\S+\.\S+|</?[a-zA-Z][^<>\n]{0,200}>",
    re.DOTALL,
)


def _lingua() -> Any:
    return require("lingua", extra="language", purpose="the scorer 'language'")


def _iso(code: str) -> Any:
    lingua = _lingua()
    try:
        return lingua.IsoCode639_1.from_str(code)
    except ValueError:
        raise SpecError(
            f"language: {code!r} is no two-letter language code that the detector knows (en, fr, de, …)"
        ) from None


@functools.cache
def _detector(codes: tuple[str, ...]) -> Any:
    builder = _lingua().LanguageDetectorBuilder
    return builder.from_iso_codes_639_1(*(_iso(code) for code in codes)).build()


@scorer("language")
@dataclass(frozen=True)
class Language(ResponseScorer):
    """1 where the response is in `language` (ISO 639-1, `fr`), else 0, as the likeliest of the languages in
    `among`.

    Code, formulas, HTML tags and addresses are left out. A few letters are no evidence: with fewer than
    `minimum_letters` the response is unscored, and so is one whose script belongs to none of the languages, or where
    the likeliest leads the next by less than `minimum_lead` of the probability ("Taxi, hotel, restaurant"). A text in a
    language outside `among` is taken for the likeliest inside it: name those that may occur. More languages cost memory
    (all 75 about 0.9 GB) and accuracy.
    """

    bounds: ClassVar[Bounds] = RATE
    language: str
    """The wanted language, by its ISO 639-1 code."""
    among: tuple[str, ...] = DEFAULT_AMONG
    """The languages to choose from."""
    minimum_letters: int = 10
    """A response with fewer letters is unscored."""
    minimum_lead: float = 0.05
    """A response whose likeliest language leads the next by less probability is unscored."""

    def __post_init__(self) -> None:
        for code in (self.language, *self.among):
            _iso(code)
        if len({self.language, *self.among}) < 2:
            raise SpecError("language: among must name a language to tell the wanted one from, found none")
        if self.minimum_letters < 1:
            raise SpecError(f"language: minimum_letters must be at least 1, found {self.minimum_letters!r}")
        if not 0 <= self.minimum_lead < 1:
            raise SpecError(f"language: minimum_lead must be in [0, 1), found {self.minimum_lead!r}")

    def score(self, sample: Sample) -> Score:
        text = _NO_LANGUAGE.sub(" ", sample.response)
        letters = sum(character.isalpha() for character in text)
        if letters < self.minimum_letters:
            return Score(None, f"fewer than {self.minimum_letters} letters")
        detector = _detector(tuple(sorted({code.lower() for code in (self.language, *self.among)})))
        likeliest, second = detector.compute_language_confidence_values(text)[:2]
        if likeliest.value == 0:
            return Score(None, "no language recognised")
        code, other = (one.language.iso_code_639_1.name.lower() for one in (likeliest, second))
        if likeliest.value - second.value < self.minimum_lead:
            return Score(None, f"no language stands out ({code} {likeliest.value:.2f}, {other} {second.value:.2f})")
        return Score(float(code == self.language.lower()), explanation=f"detected {code}")
