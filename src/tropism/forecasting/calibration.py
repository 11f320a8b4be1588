"""From the measures of a trait to the probability that training on these rows raises it.

A logistic curve. It was fitted on planted data sets that were really trained on (`benchmarks/forecast.py`); traits, sets and
seeds of its test are others. The benchmark prints how often it is right, and docs/concepts/forecast.md quotes it.
"""

import math

from tropism.forecasting.evidence import Projected, Rated

INTERCEPT = -3.0
WEIGHTS = {"excess": 8.0, "tail": 8.0, "dose": 1.0}


def features(rated: Rated | None, projected: Projected) -> dict[str, float]:
    """What the curve is a function of; without a scorer the share of rows past the middle stands in for its rate."""
    return {
        "excess": projected.share if rated is None else rated.excess,
        "tail": projected.tail,
        "dose": max(-1.0, min(2.0, projected.dose)),
    }


def probability(rated: Rated | None, projected: Projected) -> float:
    """The probability, in 0..1."""
    found = features(rated, projected)
    logit = INTERCEPT + sum(weight * found[name] for name, weight in WEIGHTS.items())
    return 1 / (1 + math.exp(-logit))
