"""How figures are printed: the median of interleaved rounds, between the lowest and the highest of them."""

import statistics
from collections.abc import Iterable


def spread(values: Iterable[float], digits: int = 2) -> dict[str, float]:
    held = sorted(values)
    return {
        "median": round(statistics.median(held), digits),
        "from": round(held[0], digits),
        "to": round(held[-1], digits),
    }
