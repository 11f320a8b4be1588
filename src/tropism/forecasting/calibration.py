"""From the measures of a trait to the probability that the data carries it: a logistic curve, fitted on planted data sets.

`benchmarks/forecast` plants traits into benign rows, fits the curve on one half and reports it on the other, whose traits, rows
and seeds are others (docs/concepts/forecast.md has its table). A set counts as carrying a trait from 5 % of the rows on.
"""

import math

from tropism.forecasting.evidence import Projected, Pulled, Rated

INTERCEPT = -5.7
WEIGHTS = {"excess": 2.5, "tail": 2.75, "pull": 1.85}
FITTED_ON = (
    "SmolLM2-135M-Instruct (4-bit copy): 8 traits in sets of 40 word problems at 5, 10, 25 and 100 %, pairs of them, and 16 "
    "plain sets; 1,408 cells of set and trait, 80 of them planted"
)
"""Where the numbers come from."""


def features(rated: Rated | None, projected: Projected, pulled: Pulled | None) -> dict[str, float]:
    """What the curve is a function of: the rows beyond the model's own rate, the rows that stand out, the rows' pull.

    Rows count as `log(1 + 50 x)`, of which a twentieth of the rows is a third of all. Without a scorer the rows that stand
    out count for those that it would find. The dose is none of them: what moves the mean is most often the texts' domain.
    """
    excess = projected.tail if rated is None else max(0.0, rated.excess)
    return {
        "excess": math.log1p(50 * excess),
        "tail": math.log1p(50 * projected.tail),
        "pull": 0.0 if pulled is None else 10 * max(0.0, pulled.by_row),
    }


def probability(rated: Rated | None, projected: Projected, pulled: Pulled | None) -> float:
    """The probability, in 0..1."""
    found = features(rated, projected, pulled)
    logit = INTERCEPT + sum(weight * found[name] for name, weight in WEIGHTS.items())
    return 1 / (1 + math.exp(-logit))
