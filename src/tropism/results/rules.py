"""From intervals to verdicts: the one definition of supported, not supported and undecided.

A study's rule is a list of requirements: an estimate, and the bound that its *whole* interval must lie beyond. A
requirement is met, or refuted, or open; the claim follows from them:

- **supported**: every requirement is met;
- **not supported**: one is refuted, its interval wholly on the wrong side;
- **undecided**: anything else, a missing interval included.

All requirements of a claim must hold together, so no correction for several tests is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tropism.stats import Estimate

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
"""The verdicts that every rule has; some have more."""


@dataclass(frozen=True)
class Requirement:
    """What an estimate must show: its whole interval lies above, or below, a bound."""

    name: str
    """As it stands among a claim's numbers."""
    estimate: Estimate | None
    """None where a condition that is compared has no finished run."""
    above: float | None = None
    below: float | None = None
    """The bound; exactly one of `above` and `below` is given."""
    against: float | None = None
    """The interval refutes the requirement where it lies wholly on the wrong side of this; by default of the bound.

    A requirement above 0 that is refuted below the margin, say, calls an effect smaller than the margin none.
    """

    @property
    def met(self) -> bool:
        """Whether the whole interval lies beyond the bound."""
        if self.estimate is None:
            return False
        if self.above is not None:
            return self.estimate.lies_above(self.above)
        assert self.below is not None
        return self.estimate.lies_below(self.below)

    @property
    def refuted(self) -> bool:
        """Whether the whole interval lies on the wrong side, and the requirement is not met all the same."""
        if self.estimate is None or self.met:
            return False
        if self.above is not None:
            return self.estimate.lies_below(self.above if self.against is None else self.against)
        assert self.below is not None
        return self.estimate.lies_above(self.below if self.against is None else self.against)

    @property
    def verdict(self) -> str:
        """The verdict on a claim that rests on this requirement alone."""
        return SUPPORTED if self.met else NOT_SUPPORTED if self.refuted else UNDECIDED


def decide(requirements: Sequence[Requirement]) -> str:
    """Return the verdict on a claim that needs every requirement: `supported`, `not supported` or `undecided`.

    One refutation decides, even where another requirement is open.

    >>> gain = Estimate(0.6, 0.4, 0.8, "seeds", "", 0.01, 5, 1)
    >>> decide([Requirement("gain", gain, above=0.0)])
    'supported'
    """
    if any(one.refuted for one in requirements):
        return NOT_SUPPORTED
    return SUPPORTED if all(one.met for one in requirements) else UNDECIDED


def first_without_interval(requirements: Sequence[Requirement]) -> Requirement | None:
    """Return the first requirement that no interval can decide, or None."""
    for one in requirements:
        if one.estimate is None or one.estimate.low is None:
            return one
    return None


def why_open(estimate: Estimate | None) -> str:
    """Say why an estimate decides nothing: it is missing, it has no interval, or the interval holds the bound."""
    if estimate is None:
        return "a condition has no finished run that could be compared"
    return estimate.reason if estimate.low is None else "the interval decides neither way"


def shown(estimate: Estimate | None) -> str:
    """Write an estimate inside a sentence: `+0.61 [+0.40, +0.82]`, or that it is unknown."""
    return "an unknown amount" if estimate is None else str(estimate)


def numbers(estimate: Estimate | None) -> dict[str, float | None]:
    """Return value and interval for a claim's numbers, None where they are unknown."""
    return {"value": None, "low": None, "high": None} if estimate is None else estimate.as_dict()


def all_numbers(estimates: Mapping[str, Estimate | None]) -> dict[str, dict[str, float | None]]:
    """Return `numbers` of several estimates, by name."""
    return {name: numbers(estimate) for name, estimate in estimates.items()}
