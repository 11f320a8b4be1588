"""From the measures of a trait to a probability that the data carries it: a logistic curve fitted on planted sets.

The sets, traits and seeds that it was fitted on are disjoint from those of the test in `benchmarks/forecast`, which
prints how often it is right. What a training makes of the data is the dry run's question, not this one's.
"""

import math

from tropism.forecast.evidence import Projected, Pulled

INTERCEPT = -4.0
WEIGHTS = {"dose": 4.0, "tail": 18.0, "strength": 0.6}
"""`strength` is `−log10 p` of tier 1, at most 2.3 with 400 draws."""


def features(projected: Projected, pulled: Pulled | None) -> dict[str, float]:
    """What the curve is a function of."""
    return {
        "dose": max(-1.0, min(2.0, projected.dose)),
        "tail": projected.tail,
        "strength": -math.log10(projected.p),
    }


def probability(projected: Projected, pulled: Pulled | None) -> float:
    """The probability, in 0..1."""
    found = features(projected, pulled)
    logit = INTERCEPT + sum(weight * found[name] for name, weight in WEIGHTS.items())
    return 1 / (1 + math.exp(-logit))
