"""Seeds until it is decided: coverage over 1,000 studies that stop as soon as an interval excludes 0, and what is saved."""

from benchmarks.sequential_studies import gaussian, rates, stopping, true_rates
from tropism.stats import looks

STUDIES = 1000


def run() -> dict[str, dict[str, float]]:
    """Coverage with our looks and with 95 % at every look; the seeds that a study took on average, of at most 8."""
    planned = looks(8)
    settings = {
        "normal, no effect": (gaussian(0.0, 0.1, 0.5), 0.0),
        "normal, no effect, seeds dominate": (gaussian(0.0, 1.0, 0.5), 0.0),
        "normal, an effect of 0.3": (gaussian(0.3, 0.1, 0.5), 0.3),
        "rates, no effect": (rates(0.5, 0.3), 0.0),
        "rates, no effect, seeds dominate": (rates(0.5, 1.0), 0.0),
        "rates, a difference": (rates(-1.0, 0.3), true_rates(-1.0, 0.3)),
    }
    found = {}
    for name, (draw, truth) in settings.items():
        covered, taken = stopping(draw, truth, planned, STUDIES, seed=12)
        naive, _ = stopping(draw, truth, planned, STUDIES, seed=12, naive=True)
        found[name] = {"coverage": covered, "coverage of 95 % at every look": naive, "seeds": round(taken, 2)}
    return found
