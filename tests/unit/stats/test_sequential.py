"""The looks' errors sum to what may be spent, and a plan's power is what a direct simulation gives."""

import numpy as np
import pytest
from scipy import stats

from tropism.errors import UsageError
from tropism.stats import Look, looks, power, smallest_effect
from tropism.stats.sequential import adjusted


@pytest.mark.parametrize("most", [3, 4, 8, 20])
def test_all_looks_together_spend_alpha_and_each_spends_something(most):
    planned = looks(most)
    assert [look.seeds for look in planned] == list(range(3, most + 1))
    assert sum(look.alpha for look in planned) == pytest.approx(0.05)
    assert min(look.alpha for look in planned) > 0


def test_a_p_value_is_below_alpha_exactly_where_the_looks_interval_excludes_nothing():
    look = looks(8)[1]
    for p in (look.alpha * 0.99, look.alpha * 1.01):
        assert (adjusted(p, look) < 0.05) == (p < look.alpha)


def test_power_of_one_look_is_that_of_students_test():
    """Against the noncentral t distribution."""
    one = (Look(5, 0.05),)
    shift = 0.4 / (0.2 / np.sqrt(5))
    bound = stats.t.ppf(0.975, 4)
    exact = stats.nct.sf(bound, 4, shift) + stats.nct.cdf(-bound, 4, shift)
    assert power(0.4, seed_sd=0.2, prompts=1, noise_sd=0.0, planned=one, studies=20_000) == pytest.approx(
        exact, abs=0.015
    )
    assert power(0.0, seed_sd=0.2, prompts=1, noise_sd=0.0, planned=looks(8), studies=4000) <= 0.055


def test_the_smallest_effect_has_the_power_asked_for():
    given = {"seed_sd": 0.1, "prompts": 48, "noise_sd": 0.6, "planned": looks(8)}
    found = smallest_effect(**given)
    assert power(found, **given) >= 0.8 > power(found - 0.01, **given)
    assert smallest_effect(**{**given, "seed_sd": 9.0}) is None


def test_too_few_seeds():
    with pytest.raises(UsageError, match="at least 3 seeds, found 2"):
        looks(2)
