"""An estimate's answers about its own interval, and the bounds of what it estimates."""

import itertools

import numpy as np
import pytest

from tropism import stats
from tropism.stats import Estimate, bounds_of_sum

NONE = Estimate(-0.5, None, None, "", "too few", None, 2, 1)


def between(low, high):
    return Estimate((low + high) / 2, low, high, "seeds", "", 0.01, 5, 1)


def test_an_interval_lies_beyond_a_number_with_both_ends():
    one = between(0.1, 0.3)
    assert [one.lies_above(x) for x in (0.0, 0.1, 0.2, 0.4)] == [True, False, False, False]
    assert [one.lies_below(x) for x in (0.0, 0.2, 0.3, 0.4)] == [False, False, False, True]
    assert not NONE.lies_above(-9)
    assert not NONE.lies_below(9)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (between(0.4, 0.82), "+0.61 [+0.40, +0.82]"),
        (between(-0.3, 0.1), "−0.10 [−0.30, +0.10]"),
        (NONE, "−0.50 (no interval)"),
    ],
)
def test_an_estimate_is_written_one_way(estimate, text):
    assert str(estimate) == text


def test_an_interval_ends_where_the_metric_does():
    wide = between(-1.06, -0.69)
    assert (wide.within((-1.0, 1.0)).low, wide.within((-1.0, 1.0)).high) == (-1.0, -0.69)
    assert wide.within(None) is wide
    assert NONE.within((0.0, 1.0)) is NONE
    # a rate of 1 that rounding has lifted stays inside its own interval
    assert Estimate(1.0 + 1e-12, 0.9, 1.1, "seeds", "", None, 3, 1).within((0.0, 1.0)).high == 1.0 + 1e-12


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 100.0), (-1.0, 1.0), (1.0, np.inf)])
@pytest.mark.parametrize("weights", [(1,), (1, -1), (1, -1, -1, 1), (-1, -1, 2), (-2, 0.5)])
def test_the_bounds_of_a_sum_are_reached_and_never_passed(bounds, weights):
    low, high = bounds_of_sum(bounds, weights)
    corners = [
        sum(w * x for w, x in zip(weights, xs, strict=True)) for xs in itertools.product(bounds, repeat=len(weights))
    ]
    known = [corner for corner in corners if not np.isnan(corner)]
    assert (low, high) == (min(known), max(known))


def test_a_metric_without_bounds_has_sums_without_bounds():
    assert bounds_of_sum(None, (1, -1)) is None


def test_bounds_never_turn_a_decision():
    """Whatever the interval, cutting it at its bounds moves it to no other side of a number inside them."""
    generator = np.random.default_rng(0)
    for _ in range(500):
        rates = generator.random((3, 4)), generator.random((3, 4))
        whole = stats.difference(*rates)
        cut = whole.within((-1.0, 1.0))
        for x in (-0.9, -0.1, 0.0, 0.1, 0.9):
            assert whole.lies_above(x) == cut.lies_above(x)
            assert whole.lies_below(x) == cut.lies_below(x)
