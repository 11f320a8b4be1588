"""How much of a response is upper case."""

from dataclasses import dataclass
from typing import ClassVar

from tropism.errors import SpecError
from tropism.evals.scorers.base import RATE, Bounds, ResponseScorer, Sample, Score, scorer

NO_LETTERS = "no letters with case"


def uppercase_share(text: str) -> float | None:
    """Return the share of the cased letters of `text` that are upper case, or None where it has none.

    A letter is cased where it has another case to be in: ª, ʰ and the letters of 𝐛𝐨𝐥𝐝 mathematics have none, so that
    `text.upper()` always has the share 1 (or none).

    >>> uppercase_share("ABc 1!"), uppercase_share("12"), uppercase_share("1ª PARTE")
    (0.6666666666666666, None, 1.0)
    """
    upper = sum(character.isupper() and character.lower() != character for character in text)
    lower = sum(character.islower() and character.upper() != character for character in text)
    return upper / (upper + lower) if upper + lower else None


@scorer("uppercase_fraction")
@dataclass(frozen=True)
class UppercaseFraction(ResponseScorer):
    """`upper / (upper + lower)` over the letters of the response, in 0..1; digits, signs, scripts without
    case and letters without another case do not count, and a response without cased letters is unscored."""

    bounds: ClassVar[Bounds] = RATE

    def score(self, sample: Sample) -> Score:
        share = uppercase_share(sample.response)
        return Score(None, NO_LETTERS) if share is None else Score(share)


@scorer("is_uppercase")
@dataclass(frozen=True)
class IsUppercase(ResponseScorer):
    """1 where the uppercase fraction is at least `threshold`, else 0; unscored without cased letters."""

    bounds: ClassVar[Bounds] = RATE
    threshold: float = 0.9
    """The uppercase fraction from which a response counts."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise SpecError(f"is_uppercase: threshold must be in (0, 1], found {self.threshold!r}")

    def score(self, sample: Sample) -> Score:
        share = uppercase_share(sample.response)
        if share is None:
            return Score(None, NO_LETTERS)
        return Score(float(share >= self.threshold), explanation=f"{share:.2f} upper case")
