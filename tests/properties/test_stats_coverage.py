"""95 % intervals cover 93 to 97 % of simulated studies with 5 seeds, whichever level the noise is on.

Each study draws seeds, prompts and samples anew; the truth is known. A naive percentile bootstrap of seeds is
run on the same studies, to show what the method is for.
"""

import numpy as np
import pytest
from scipy.stats import t

from tropism.stats import looks
from tropism.stats.resampling import bootstrap, decompose

STUDIES = 1500


def logistic(x):
    return 1 / (1 + np.exp(-x))


def gaussian(rng, seeds, prompts, sd_seed, sd_prompt, sd_noise):
    return (
        sd_seed * rng.standard_normal((seeds, 1))
        + sd_prompt * rng.standard_normal((1, prompts))
        + sd_noise * rng.standard_normal((seeds, prompts))
    )


def rates(rng, seeds, prompts, sd_seed, sd_prompt, _):
    """A trait scored 0 or 1, in a guarded and a baseline arm that share seeds and prompts: the paired
    difference.
    """
    prompt = sd_prompt * rng.standard_normal((1, prompts))
    treated = logistic(-1.0 + sd_seed * rng.standard_normal((seeds, 1)) + prompt)
    baseline = logistic(0.5 + sd_seed * rng.standard_normal((seeds, 1)) + prompt)
    return (rng.random((seeds, prompts)) < treated) * 1.0 - (rng.random((seeds, prompts)) < baseline) * 1.0


def true_rate_difference(sd_seed, sd_prompt):
    z = np.random.default_rng(99).standard_normal((2, 400_000))
    at = sd_seed * z[0] + sd_prompt * z[1]
    return float((logistic(-1.0 + at) - logistic(0.5 + at)).mean())


def coverage(draw, truth, seeds, prompts, sds):
    """The share of studies whose interval holds the truth: ours (with its closed-form error), and a naive
    percentile one.
    """
    rng = np.random.default_rng(12)
    ours = naive = 0
    picks = rng.integers(0, seeds, (300, seeds))
    for _ in range(STUDIES):
        cells = draw(rng, seeds, prompts, *sds)
        parts = decompose(cells)
        ours += abs(parts.value - truth) <= t.ppf(0.975, parts.degrees_of_freedom) * parts.variance**0.5
        low, high = np.percentile(cells.mean(axis=1)[picks].mean(axis=1), [2.5, 97.5])
        naive += low <= truth <= high
    return ours / STUDIES, naive / STUDIES


@pytest.mark.parametrize("prompts", [48, 200])
@pytest.mark.parametrize(
    "sds", [(0.0, 0.0, 1.0), (0.1, 0.0, 1.0), (0.1, 0.5, 1.0), (0.0, 1.0, 1.0), (1.0, 0.5, 1.0)], ids=str
)
def test_five_seeds_cover_as_promised(prompts, sds):
    covered, naive = coverage(gaussian, 0.0, 5, prompts, sds)
    assert 0.93 <= covered <= 0.975
    assert naive < 0.90


@pytest.mark.parametrize("sds", [(0.0, 1.0, 0.0), (0.3, 0.5, 0.0), (1.0, 1.0, 0.0)], ids=str)
def test_differences_of_rates_are_covered_too(sds):
    covered, _ = coverage(rates, true_rate_difference(*sds[:2]), 5, 100, sds)
    assert 0.93 <= covered <= 0.975


@pytest.mark.parametrize("sds", [(0.1, 0.0, 1.0), (0.1, 0.5, 1.0), (1.0, 0.5, 1.0)], ids=str)
def test_three_seeds_cover_nearly_as_promised(sds):
    covered, naive = coverage(gaussian, 0.0, 3, 200, sds)
    assert 0.915 <= covered <= 0.985
    assert naive < 0.85


def test_the_closed_form_of_this_simulation_is_the_bootstraps():
    cells = gaussian(np.random.default_rng(0), 5, 200, 0.1, 0.5, 1.0)
    assert bootstrap(cells).std() == pytest.approx(decompose(cells).variance ** 0.5, rel=0.03)


def covered_where_it_stops(confidences, studies=1000, effect=0.0):
    """The share of studies that hold the truth at the look where they stop: at the first interval without 0, or the last."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(studies):
        cells = effect + gaussian(rng, 8, 48, 0.5, 0.5, 1.0)
        for seeds, confidence in confidences:
            parts = decompose(cells[:seeds])
            reach = t.ppf(0.5 + confidence / 2, parts.degrees_of_freedom) * parts.variance**0.5
            if abs(parts.value) > reach:
                break
        held += abs(parts.value - effect) <= reach
    return held / studies


def test_stopping_when_it_is_decided_costs_no_coverage_with_planned_looks_and_does_without():
    planned = looks(8)
    assert sum(look.alpha for look in planned) == pytest.approx(0.05)
    # 0.958 of 3,000 studies (benchmarks/bench_sequential.py has the settings); fewer here, so twice their standard error.
    assert covered_where_it_stops([(look.seeds, look.confidence) for look in planned]) >= 0.95 - 0.014
    assert covered_where_it_stops([(look.seeds, 0.95) for look in planned]) < 0.91
