"""How far two scorers of the same answers agree: a keyword rate and a judge, say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tropism.errors import UsageError
from tropism.evals.scorers.base import Score


@dataclass(frozen=True)
class Agreement:
    """Counts over the answers that both scored, and what was left out.

    `kappa` is Cohen's, `(p_o − p_e)/(1 − p_e)`: 0 at chance, 1 at full agreement; None where chance alone
    agrees fully.
    """

    both: int
    neither: int
    only_first: int
    only_second: int
    unscored: int

    @property
    def n(self) -> int:
        """Answers that both scored."""
        return self.both + self.neither + self.only_first + self.only_second

    @property
    def observed(self) -> float | None:
        """Share of the answers on which both say the same."""
        return (self.both + self.neither) / self.n if self.n else None

    @property
    def kappa(self) -> float | None:
        """Agreement beyond chance."""
        if self.observed is None:
            return None
        first, second = (self.both + self.only_first) / self.n, (self.both + self.only_second) / self.n
        chance = first * second + (1 - first) * (1 - second)
        return None if math.isclose(chance, 1) else (self.observed - chance) / (1 - chance)


def agreement(first: Sequence[Score], second: Sequence[Score]) -> Agreement:
    """Compare two scorers' yes (at least 0.5) and no on the same answers; an answer that either left unscored
    is a count. Raises `UsageError` for scores outside 0 to 1, such as a judge's 0 to 100, where 0.5 is no boundary.

    >>> one, zero = Score(1.0), Score(0.0)
    >>> agreement([one, one, zero, zero], [one, zero, zero, Score(None, "no reply")]).observed
    0.6666666666666666
    """
    if len(first) != len(second):
        raise UsageError(f"agreement: both must score the same answers, found {len(first)} and {len(second)} scores")
    outside = [score.value for score in (*first, *second) if score.value is not None and not 0 <= score.value <= 1]
    if outside:
        raise UsageError(
            f"agreement: scores must be between 0 and 1, found {outside[0]:g}; turn the score into a yes or no first"
        )
    cells = {(True, True): 0, (False, False): 0, (True, False): 0, (False, True): 0}
    unscored = 0
    for one, other in zip(first, second, strict=True):
        if one.value is None or other.value is None:
            unscored += 1
        else:
            cells[one.value >= 0.5, other.value >= 0.5] += 1
    return Agreement(cells[True, True], cells[False, False], cells[True, False], cells[False, True], unscored)
