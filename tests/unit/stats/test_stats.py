"""Intervals against closed forms and scipy; refusals where there is too little to say anything."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tropism import stats
from tropism.errors import UsageError
from tropism.stats.resampling import decompose


def simulated(seeds=5, prompts=40, sd_seed=0.3, sd_prompt=0.5, sd_noise=1.0, mean=0.2, draw=0):
    rng = np.random.default_rng(draw)
    return (
        mean
        + sd_seed * rng.standard_normal((seeds, 1))
        + sd_prompt * rng.standard_normal((1, prompts))
        + sd_noise * rng.standard_normal((seeds, prompts))
    )


def anova_variance(cells):
    """Two-way random effects, one observation a cell: the textbook's mean squares, written out with loops."""
    seeds, prompts = cells.shape
    grand = cells.mean()
    ms_seed = sum(prompts * (cells[s].mean() - grand) ** 2 for s in range(seeds)) / (seeds - 1)
    ms_prompt = sum(seeds * (cells[:, p].mean() - grand) ** 2 for p in range(prompts)) / (prompts - 1)
    ms_noise = sum(
        (cells[s, p] - cells[s].mean() - cells[:, p].mean() + grand) ** 2 for s in range(seeds) for p in range(prompts)
    ) / ((seeds - 1) * (prompts - 1))
    return (ms_seed + max(0.0, ms_prompt - ms_noise)) / (seeds * prompts)


@pytest.mark.parametrize("seeds", [3, 5, 9])
@pytest.mark.parametrize("draw", [0, 1])
def test_the_bootstrap_has_the_variance_of_the_two_way_analysis(seeds, draw):
    cells = simulated(seeds=seeds, draw=draw)
    expected = anova_variance(cells)
    assert decompose(cells).variance == pytest.approx(expected, rel=1e-12)
    draws = stats.bootstrap(cells, resamples=60_000, seed=draw)
    assert draws.mean() == pytest.approx(cells.mean(), abs=4 * (expected / 60_000) ** 0.5)
    assert draws.var() == pytest.approx(expected, rel=0.04)


def test_with_a_mean_per_seed_the_interval_is_students():
    means = np.array([0.2, 0.35, 0.3, 0.5, 0.1])
    found = stats.interval(means[:, None], resamples=400_000)
    low, high = scipy.stats.t.interval(0.95, 4, loc=means.mean(), scale=scipy.stats.sem(means))
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-3)
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(means, 0).pvalue, rel=0.02)
    assert found.over == "seeds"


def test_a_difference_is_paired_by_seed_and_prompt():
    baseline = simulated(sd_seed=2.0, sd_prompt=2.0, sd_noise=0.05)
    treated = baseline - 0.5 + 0.01 * simulated(draw=3)
    found = stats.difference(treated, baseline)
    assert found.value == pytest.approx((treated - baseline).mean())
    assert found.high - found.low < 0.1 < stats.interval(baseline).high - stats.interval(baseline).low
    by_hand = scipy.stats.ttest_rel(treated.mean(axis=1), baseline.mean(axis=1)).pvalue
    assert (found.p < 0.01) == (by_hand < 0.01)


def test_antisymmetry_and_shift():
    one, two = simulated(draw=1), simulated(draw=2)
    forward, backward = stats.difference(one, two), stats.difference(two, one)
    assert forward.value == pytest.approx(-backward.value)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
    shifted = stats.interval(one + 10.0)
    assert shifted.high - shifted.low == pytest.approx(stats.interval(one).high - stats.interval(one).low)


@pytest.mark.parametrize("seeds", [1, 2])
def test_under_three_seeds_there_is_no_interval_over_seeds(seeds):
    cells = simulated(seeds=seeds)
    found = stats.interval(cells)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.reason == f"an interval over seeds needs at least 3 seeds, found {seeds}"
    within = stats.interval_within_seeds(cells)
    column = cells.mean(axis=0)
    assert (within.low, within.high) == pytest.approx(
        scipy.stats.t.interval(0.95, 39, loc=column.mean(), scale=scipy.stats.sem(column))
    )
    assert within.over == "prompts"
    assert not within.over_seeds
    assert "not over seeds" in within.reason


def test_a_rate_of_nothing_gets_the_exact_interval():
    found = stats.interval(np.zeros((3, 50)))
    assert (found.low, found.high) == pytest.approx(proportion_confint(0, 50, method="beta"), abs=1e-12)
    assert found.over == stats.EXACT
    assert not found.over_seeds


def test_all_against_nothing_still_has_an_interval():
    found = stats.difference(np.zeros((3, 50)), np.ones((3, 50)))
    reach = proportion_confint(0, 50, method="beta")[1]
    assert found.value == -1.0
    assert (found.low, found.high) == pytest.approx((-1.0, -1.0 + 2 * reach))
    assert found.over == stats.EXACT


def test_a_difference_that_is_always_nothing_is_no_rate():
    found = stats.interval_within_seeds(np.zeros((1, 50)), contrast=True)
    assert found.low is None
    assert stats.interval(np.zeros((3, 50)), contrast=True).low is None
    both = stats.difference(np.ones((3, 50)), np.ones((3, 50)))
    assert both.low == pytest.approx(-both.high)
    assert both.over == stats.EXACT


def test_what_does_not_vary_and_is_no_rate_has_no_interval():
    found = stats.interval(np.full((4, 10), 0.3))
    assert found.low is None
    assert found.reason == "nothing varies over seeds or prompts, so no interval can be formed"


def test_unscored_cells_are_left_out_and_not_counted_as_zero():
    cells = simulated(seeds=4, prompts=30) + 5.0
    cells[1, 3] = cells[2, 7] = np.nan
    found = stats.interval(cells)
    assert found.value == pytest.approx(np.mean([np.nanmean(row) for row in cells]))
    whole = stats.interval(np.vstack([cells, np.full((1, 30), np.nan)]))
    assert (whole.value, whole.low, whole.seeds) == (found.value, found.low, 4)


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_global_state_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    cells = simulated()
    assert stats.interval(cells, seed=1) == stats.interval(cells, seed=1)
    assert stats.interval(cells, seed=1) != stats.interval(cells, seed=2)
    assert (np.random.get_state()[1] == before).all()


def test_samples_of_a_prompt_are_averaged_inside_their_cell():
    table = pd.DataFrame({"seed": [0, 0, 0, 1], "id": ["a", "a", "b", "a"], "value": [0.0, 1.0, 1.0, np.nan]})
    np.testing.assert_array_equal(stats.to_cells(table), [[0.5, 1.0], [np.nan, np.nan]])


@pytest.mark.parametrize("wanted", [(None, None), ([2, 0, 7], ["b", "z", "a"])])
def test_cells_are_the_means_that_a_loop_finds(wanted):
    draw = np.random.default_rng(0)
    table = pd.DataFrame(
        {"seed": draw.integers(0, 4, 200), "id": draw.choice(list("abcde"), 200), "value": draw.random(200)}
    )
    table.loc[draw.random(200) < 0.3, "value"] = np.nan
    table.loc[table["id"] == "e", "value"] = np.nan  # asked, and never scored
    seeds, prompts = wanted[0] or sorted(set(table["seed"])), wanted[1] or sorted(set(table["id"]))
    expected = np.full((len(seeds), len(prompts)), np.nan)
    for s, seed in enumerate(seeds):
        for p, prompt in enumerate(prompts):
            values = [v for n, i, v in table.itertuples(index=False) if (n, i) == (seed, prompt) and v == v]
            if values:
                expected[s, p] = sum(values) / len(values)
    np.testing.assert_allclose(stats.to_cells(table, *wanted), expected, rtol=1e-14)


def test_pairing_keeps_what_both_have_and_takes_a_seedless_baseline():
    treated = pd.DataFrame({"seed": [0, 0, 1, 1], "id": ["a", "b", "a", "c"], "value": [1.0, 2.0, 3.0, 4.0]})
    baseline = pd.DataFrame({"seed": [0, 1, 1], "id": ["a", "a", "b"], "value": [0.5, 1.0, 9.0]})
    np.testing.assert_array_equal(stats.paired(treated, baseline), [[0.5, np.nan], [2.0, np.nan]])
    base = pd.DataFrame({"seed": [None, None], "id": ["a", "b"], "value": [0.5, 1.0]})
    np.testing.assert_array_equal(stats.paired(treated, base), [[0.5, 1.0], [2.5, np.nan]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: stats.to_cells(pd.DataFrame({"seed": [], "id": [], "value": []})),
            "scores: needs at least one row",
        ),
        (lambda: stats.to_cells(pd.DataFrame({"seed": [0]})), "lacks id, value"),
        (lambda: stats.interval(np.full((3, 4), np.nan)), "a scored cell"),
        (lambda: stats.interval(np.ones((3, 4)), confidence=95), "strictly between 0 and 1, found 95"),
        (lambda: stats.difference(np.ones((3, 4)), np.ones((3, 5))), r"found \(3, 4\) and \(3, 5\)"),
        (lambda: stats.exact_interval(3, 2), "found 3 of 2"),
        (lambda: stats.exact_interval(0, 0), "found 0 of 0"),
        (lambda: stats.holm([0.5, 1.5]), "found 1.5"),
        (lambda: stats.permutation_test(np.array([])), "at least one"),
        (lambda: stats.cohens_h(1.2, 0.5), "treated: a rate lies between 0 and 1"),
        (
            lambda: stats.noninferior(stats.interval(simulated()), -0.1),
            "margin: must be 0 or a positive number, found -0.1",
        ),
        (
            lambda: stats.paired(
                pd.DataFrame({"seed": [0], "id": ["a"], "value": [1.0]}),
                pd.DataFrame({"seed": [1], "id": ["a"], "value": [1.0]}),
            ),
            "share no seed",
        ),
        (
            lambda: stats.paired(
                pd.DataFrame({"seed": [0], "id": ["a"], "value": [1.0]}),
                pd.DataFrame({"seed": [0], "id": ["b"], "value": [1.0]}),
            ),
            "share no prompt",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.parametrize("count", [3, 5, 8])
def test_permutation_equals_scipys(count):
    differences = np.random.default_rng(count).standard_normal(count) + 0.7
    theirs = scipy.stats.permutation_test(
        (differences, np.zeros(count)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    found = stats.permutation_test(differences)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.smallest == 2 / 2**count <= found.p


def test_many_seeds_are_drawn_and_never_give_zero():
    found = stats.permutation_test(np.full(20, 1.0) + 0.01 * np.arange(20))
    assert found.p == found.smallest == 1 / 10_001


def test_holm_equals_statsmodels_and_leaves_out_what_was_not_tested():
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    np.testing.assert_allclose(stats.holm(p), multipletests(p, method="holm")[1])
    assert stats.holm([0.01, None, 0.04]) == pytest.approx([0.02, None, 0.04])
    assert stats.holm([]) == []


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (1, 20), (10, 20), (20, 20)])
def test_the_exact_interval_equals_statsmodels(successes, n):
    expected = proportion_confint(successes, n, method="beta")
    low, high = stats.exact_interval(successes, n)
    assert low == pytest.approx(0.0 if successes == 0 else expected[0])
    assert high == pytest.approx(1.0 if successes == n else expected[1])


def test_effect_sizes():
    differences = np.array([0.2, 0.3, 0.25, 0.4, 0.1])
    j = 1 - 3 / (4 * 4 - 1)
    assert stats.hedges_g(differences) == pytest.approx(j * differences.mean() / differences.std(ddof=1))
    assert stats.hedges_g(differences[:2]) is None
    assert stats.hedges_g(np.full(4, 0.3)) is None
    assert stats.cohens_h(1.0, 0.0) == pytest.approx(np.pi)


@pytest.mark.parametrize(
    ("shift", "higher", "expected"),
    [
        (0.0, True, "kept"),
        (-0.5, True, "lost"),
        (-0.1, True, "undecided"),
        (0.5, False, "lost"),
        (-0.5, False, "kept"),
    ],
)
def test_noninferiority_follows_the_interval(shift, higher, expected):
    baseline = simulated(sd_seed=0.02, sd_noise=0.1, sd_prompt=0.1)
    treated = baseline + shift + 0.06 * simulated(sd_seed=1.0, sd_prompt=0, sd_noise=0.2, mean=0.0, draw=5)
    change = stats.difference(treated, baseline)
    assert stats.noninferior(change, 0.1, higher_is_better=higher) == expected


def test_without_an_interval_nothing_is_kept():
    change = stats.difference(simulated(seeds=2), simulated(seeds=2))
    assert stats.noninferior(change, 10.0) is stats.Verdict.UNDECIDED
