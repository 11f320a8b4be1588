"""The analysis of inoculation: each outcome of the rule, the error rates of its tables, and what it refuses."""

import numpy as np
import pandas as pd
import pytest

import inoculation_tables as simulated
from tropism.errors import DataError, UsageError
from tropism.stats.random_controls import control_difference, random_p_values
from tropism.studies.inoculation import rules as rule
from tropism.studies.inoculation.drift import correlation, drift_difference
from tropism.studies.inoculation.loss_matching import by_ancova, by_bins
from tropism.studies.inoculation.summary import summary, tidy
from tropism.studies.inoculation.tables import halves, paired_differences, select_site, site_means

MATCHED = {"loss_drop": 0.3, "placebo_loss_drop": 0.3}


def study(rng=None, *, spread=0.1, drift=None, **effects):
    rng = rng or np.random.default_rng(0)
    table = simulated.pressures(rng, **effects)
    return rule.analyse(
        table, simulated.random_controls(rng, table, spread=spread), simulated.runs(rng, **(drift or {}))
    )


def test_supported():
    found = study(drop=1.0, **MATCHED)
    assert found.verdict.outcome == "supported"
    numbers = found.verdict.numbers
    assert numbers["pressure_vs_neutral"]["high"] < 0
    assert numbers["pressure_vs_placebo"]["high"] < 0
    assert numbers["random_p"] == 0.01
    assert numbers["pressure_drift_r"] > 0.9
    assert "resid_post." in found.verdict.because


def test_loss_mediated():
    """The prompt lowers the loss, pressure follows the loss and nothing else; the placebo lowers it by a third."""
    found = study(slope=3.0, loss_drop=0.6, placebo_loss_drop=0.2)
    assert found.verdict.outcome == "loss-mediated"
    assert "at equal loss" in found.verdict.because


def test_different_mechanism():
    found = study(drop=1.0, drift={"inoculation": 0.8}, **MATCHED)
    assert found.verdict.outcome == "different mechanism"


def test_not_supported_where_pressure_does_not_fall():
    assert study(**MATCHED).verdict.outcome == "not supported"


def test_not_supported_where_pressure_rises():
    assert study(drop=-1.0, **MATCHED).verdict.outcome == "not supported"


@pytest.mark.parametrize("slope", [0.0, 3.0])
def test_a_placebo_that_moves_pressure_as_much_means_not_supported(slope):
    """Also where the whole effect runs through the loss, which the placebo lowers as much."""
    found = study(drop=1.0 if slope == 0 else 0.0, placebo_drop=1.0 if slope == 0 else 0.0, slope=slope, **MATCHED)
    assert found.verdict.outcome == "not supported"
    assert "placebo itself moves it" in found.verdict.because
    assert found.verdict.numbers["pressure_vs_neutral"]["high"] < 0


def test_not_supported_where_random_directions_drop_as_much():
    found = study(drop=1.0, spread=3.0, **MATCHED)
    assert found.verdict.outcome == "not supported"
    assert "random directions drop as much" in found.verdict.because


def test_not_supported_where_drift_falls_but_runs_do_not_follow_pressure():
    """Drift falls against neutral, and the placebo, whose pressure is highest, drifts least."""
    found = study(drop=1.0, placebo_drop=-2.0, drift={"inoculation": 0.6, "placebo": 0.0}, **MATCHED)
    assert found.verdict.outcome == "not supported"
    assert "does not go with pressure" in found.verdict.because


@pytest.mark.parametrize("seeds", [1, 2])
def test_under_three_seeds_the_verdict_says_that_it_cannot_be_given(seeds):
    found = study(drop=1.0, drift={"seeds": seeds}, **MATCHED)
    assert found.verdict.outcome == "undecided"
    assert (
        "the verdict cannot be given: drift needs an interval over seeds, that needs 3 seeds" in found.verdict.because
    )
    assert f"there are {seeds}" in found.verdict.because
    assert found.drift["low"].isna().all()
    assert found.verdict.numbers["drift_vs_neutral"]["low"] is None


def test_error_rates_over_200_simulated_studies():
    """Null: families of sites and the chosen site err at most at their level. Planted: found. 200 studies."""
    rng = np.random.default_rng(1)
    family = chosen = ancova = power = found_site = 0
    for _ in range(200):
        null = simulated.pressures(rng, chats=60)
        half = null["chat"].map(dict(zip(null["chat"], halves(list(null["chat"])), strict=True)))
        select, report = null[half == "select"], null[half == "report"]
        differences = paired_differences(report, "inoculation", "neutral")
        family += bool((differences["p_holm"] < 0.05).any())
        site = select_site(paired_differences(select, "inoculation", "neutral"))
        chosen += bool(differences.set_index("site").loc[site, "p"] < 0.05)
        mediated = simulated.pressures(rng, chats=60, sites=1, slope=2.0, loss_drop=0.5)
        ancova += bool(by_ancova(mediated, "inoculation", "neutral")["p"].iloc[0] < 0.05)
        planted = simulated.pressures(rng, chats=120, sites=1, drop=0.5)
        power += bool((paired_differences(planted, "inoculation", "neutral")["p_holm"] < 0.05).any())
        # one site of four has the effect, and the selecting half must find it
        planted = simulated.pressures(rng, chats=60)
        at = (planted["site"] == "resid_post.2") & (planted["condition"] == "inoculation")
        planted.loc[at, "pressure"] -= 1.5
        found_site += select_site(paired_differences(planted, "inoculation", "neutral")) == "resid_post.2"
    # 10 expected at the level; 19 is the 99.8 % point of Binomial(200, 0.05)
    assert family <= 19
    assert chosen <= 19
    assert ancova <= 19
    assert chosen >= 1  # and a test that never errs tests nothing
    assert power >= 190
    assert found_site >= 190


def test_random_p_values_of_studies_without_effect_stay_at_their_level():
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(200):
        draws = rng.normal(size=(3, 100))  # the trait's direction is one more random direction
        rows = [
            (condition, "s", "isotropic", draw, value)
            for condition, values in zip(simulated.CONDITIONS, draws, strict=True)
            for draw, value in enumerate(values, start=-1)
        ]
        table = pd.DataFrame(rows, columns=["condition", "site", "kind", "draw", "pressure"])
        difference = control_difference(table, "inoculation", "neutral")
        false += bool(random_p_values(difference, alternative="less")["p"].iloc[0] <= 0.05)
    assert 1 <= false <= 19


def test_bins_and_ancova_recover_a_planted_effect_under_a_planted_slope():
    rng = np.random.default_rng(3)
    table = simulated.pressures(rng, chats=2000, sites=1, slope=3.0, loss_drop=0.4, drop=1.0)
    raw = paired_differences(table, "inoculation", "neutral")["value"].iloc[0]
    assert raw == pytest.approx(-2.2, abs=0.1)  # the effect, and the slope times the loss
    ancova = by_ancova(table, "inoculation", "neutral").iloc[0]
    assert ancova["value"] == pytest.approx(-1.0, abs=0.1)
    assert ancova["low"] < -1.0 < ancova["high"]
    bins = by_bins(table, "inoculation", "neutral", bins=20).iloc[0]
    assert bins["value"] == pytest.approx(-1.0, abs=0.25)  # loss still varies a little within a bin
    assert bins["overlap"] > 0.9


def test_ancova_equals_a_regression_by_hand():
    table = simulated.pressures(np.random.default_rng(4), sites=1, slope=1.0, loss_drop=0.2, drop=0.3)
    two = table[table["condition"] != "placebo"]
    design = np.column_stack(
        [np.ones(len(two)), two["condition"] == "inoculation", two["loss"], np.log(two["gradient_norm"])]
    ).astype(float)
    wanted = np.linalg.lstsq(design, two["pressure"].to_numpy(), rcond=None)[0][1]
    assert by_ancova(table, "inoculation", "neutral")["value"].iloc[0] == pytest.approx(wanted)


def test_bins_without_overlap_match_nothing():
    table = simulated.pressures(np.random.default_rng(5), sites=1, loss_drop=50.0)
    row = by_bins(table, "inoculation", "neutral").iloc[0]
    assert row["overlap"] == 0
    assert np.isnan(row["value"])
    found = study(drop=1.0, loss_drop=50.0, placebo_loss_drop=50.0)
    assert any("extrapolates" in caveat for caveat in found.caveats)


def test_halves_are_balanced_and_do_not_depend_on_the_order():
    chats = [f"q{i}" for i in range(101)]
    one = dict(zip(chats, halves(chats, 3), strict=True))
    back = dict(zip(chats[::-1], halves(chats[::-1], 3), strict=True))
    assert one == back
    assert sum(half == "select" for half in one.values()) == 50
    with pytest.raises(UsageError, match="at least 4 different chats to split in two, found 2"):
        halves(["a", "b"])


def test_paired_difference_by_hand_and_pairing_helps():
    table = simulated.pressures(np.random.default_rng(6), drop=0.3, sites=1)
    row = paired_differences(table, "inoculation", "neutral").iloc[0]
    wide = table.pivot(index="chat", columns="condition", values="pressure")
    differences = wide["inoculation"] - wide["neutral"]
    assert row["value"] == pytest.approx(differences.mean())
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    assert (row["high"] - row["low"]) / 2 == pytest.approx(error * 1.98, rel=0.01)
    means = site_means(table).set_index(["condition", "metric"])
    assert means.loc[("neutral", "pressure"), "value"] == pytest.approx(wide["neutral"].mean())


def test_the_site_is_chosen_on_one_half_and_reported_on_the_other():
    rng = np.random.default_rng(7)
    table = simulated.pressures(rng, sites=3)
    select = np.array(halves(list(table["chat"]))) == "select"
    boosted = select & (table["site"] == "resid_post.1") & (table["condition"] == "inoculation")
    table.loc[boosted, "pressure"] -= 5.0
    found = rule.analyse(table, simulated.random_controls(rng, table), simulated.runs(rng))
    assert found.site == "resid_post.1"
    assert found.verdict.outcome == "not supported"  # the effect was in the selecting half alone
    fixed = rule.analyse(table, simulated.random_controls(rng, table), simulated.runs(rng), site="resid_post.0")
    assert fixed.site == "resid_post.0"


def test_drift_by_seed_and_its_correlation():
    runs = simulated.runs(np.random.default_rng(8), spread=0.0)
    row = drift_difference(runs, "inoculation", "neutral").iloc[0]
    assert row["value"] == row["low"] == row["high"] == pytest.approx(-0.6)  # every seed agrees
    runs["pressure"] = runs["drift"] * 2
    table = correlation(runs)
    assert table["r"].tolist() == pytest.approx([1.0, 1.0])
    runs["pressure"] = 1.0
    assert correlation(runs)["r"].isna().all()
    apart = drift_difference(
        runs[(runs["condition"] == "neutral") | (runs["seed"] > 9)], "inoculation", "neutral"
    ).iloc[0]
    assert apart["seeds"] == 0
    assert apart["reason"] == "the two conditions share no seed"


def test_the_summary_states_verdict_numbers_and_caveats():
    found = study(drop=1.0, drift={"seeds": 2}, **MATCHED)
    text = summary(found)
    assert "**Verdict: undecided.** The verdict cannot be given" in text
    for heading in ("At equal loss", "Random directions", "Drift", "Caveats"):
        assert f"## {heading}" in text
    assert all(caveat in text for caveat in found.caveats)
    assert "has 3 independent points, not 6" in text
    table = tidy(found)
    assert set(table["table"]) == {
        "mean",
        "difference",
        "at equal loss",
        "random directions",
        "drift",
        "correlation",
    }
    assert list(table.columns) == ["table", "site", "contrast", "metric", "n", "value", "low", "high", "p"]


def _with(change):
    rng = np.random.default_rng(0)
    table = simulated.pressures(rng, sites=2, chats=20)
    tables = {
        "pressures": table,
        "random": simulated.random_controls(rng, table),
        "runs": simulated.runs(rng),
    }
    change(tables)
    return tables


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.update(pressures=t["pressures"].drop(columns="loss")), UsageError, "lacks loss"),
        (
            lambda t: t.update(pressures=t["pressures"].query("condition != 'placebo'")),
            UsageError,
            "has no condition 'placebo'; it has: inoculation, neutral",
        ),
        (
            lambda t: t.update(pressures=t["pressures"].iloc[1:]),
            DataError,
            "chat 'q0' has no finite pressure at resid_post.0",
        ),
        (
            lambda t: t.update(pressures=pd.concat([t["pressures"], t["pressures"].iloc[:1]])),
            DataError,
            "chat 'q0' has 2 rows at resid_post.0 in condition 'neutral'",
        ),
        (
            lambda t: t.update(random=t["random"].query("site == 'x'")),
            UsageError,
            "have no rows at resid_post",
        ),
        (
            lambda t: t.update(random=t["random"].query("condition != 'neutral' or draw < 50")),
            UsageError,
            "have different sites, kinds or draws",
        ),
        (
            lambda t: t.update(random=t["random"].query("condition != 'neutral'")),
            UsageError,
            "has no condition 'neutral'",
        ),
        (lambda t: t.update(runs=t["runs"].drop(columns="seed")), UsageError, "lacks seed"),
        (
            lambda t: t.update(runs=pd.concat([t["runs"], t["runs"].iloc[:1]])),
            UsageError,
            "'neutral' has seed 0 twice",
        ),
        (
            lambda t: t.update(runs=t["runs"].assign(drift=np.nan)),
            UsageError,
            "drift of 'neutral', seed 0, is not a finite",
        ),
        (
            lambda t: t.update(runs=pd.concat([t["runs"], t["runs"].iloc[:1].assign(condition="caft")])),
            UsageError,
            "condition 'caft' has no pressure",
        ),
        (lambda t: t.update(site="resid_post.9"), UsageError, "site 'resid_post.9' is not in the table"),
    ],
)
def test_what_is_missing_is_named(change, error, message):
    with pytest.raises(error, match=message):
        rule.analyse(**_with(change))


def test_the_analysis_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, tropism.studies.inoculation.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
