"""The claims of a routing study, each verdict hit on synthetic tables."""

import math

import pandas as pd
import pytest

from tropism.studies.routing import rules as routing
from tropism.studies.routing import section
from tropism.studies.routing.rules import Arms, Rates, claims

LOCALISES = "Routing localises the trait"
PARTIAL = "Routing with part of the labels still works"
RETAIN = "Ablating the retain adapter does not remove the trait"
ABSORBS = "Unlabelled examples of the trait are absorbed by the forget adapter"
ORTHOGONAL = "The two adapters' subspaces are near orthogonal"
WORLD = {
    "baseline": (0.50, 0.30, 0.30), "routed": (0.60, 0.05, 0.80), "routed_50": (0.55, 0.10, 0.70),
    "random": (0.50, 0.30, 0.35), "filtered": (0.40, 0.25, 0.25),
}  # fmt: skip
"""full, forget_ablated, retain_ablated: routing as it should work."""
GEOMETRY = {routing.COSINE: 0.02, routing.OVERLAP: 0.14, routing.OVERLAP_NULL: 0.12}


def table(world=WORLD, geometry=GEOMETRY, seeds=3, noise=0.01, base=0.02) -> pd.DataFrame:
    """Every seed a little off, each arm in its own way, so that contrasts vary too."""
    rows = [("base", None, "full", "held_out", "caps_rate", base)]
    for i, (arm, values) in enumerate(world.items()):
        for seed in range(seeds):
            for j, (mode, value) in enumerate(zip(("full", "forget_ablated", "retain_ablated"), values, strict=True)):
                off = noise * math.sin(1 + 7 * i + 3 * j + 11 * seed)
                rows.append((arm, seed, mode, "held_out", "caps_rate", value + off))
            rows += [
                (arm, seed, "full", "weights", metric, value + 0.1 * noise * math.sin(i + seed + 5 * k))
                for k, (metric, value) in enumerate(geometry.items())
            ]
    return pd.DataFrame(rows, columns=["condition", "seed", "mode", "eval_set", "metric", "value"])


def found(results: pd.DataFrame, **options):
    return {c.claim: c for c in claims(Rates(results, "caps_rate", "held_out"), Arms(), **options)}


def test_routing_as_it_should_work_supports_every_claim():
    verdicts = {name: claim.verdict for name, claim in found(table()).items()}
    assert verdicts == dict.fromkeys([LOCALISES, PARTIAL, RETAIN, ABSORBS, ORTHOGONAL], "supported")


@pytest.mark.parametrize("seeds", [1, 2])
def test_under_three_seeds_everything_is_undecided_and_says_why(seeds):
    for claim in found(table(seeds=seeds)).values():
        assert claim.verdict == "undecided"
        assert f"at least 3 seeds, found {seeds}" in claim.because


def test_a_wide_spread_over_seeds_decides_nothing():
    verdicts = {name: claim.verdict for name, claim in found(table(noise=0.6)).items()}
    assert verdicts[LOCALISES] == verdicts[PARTIAL] == verdicts[RETAIN] == verdicts[ABSORBS] == "undecided"


def test_it_does_not_localise_where_a_control_loses_as_much():
    claim = found(table({**WORLD, "random": (0.60, 0.05, 0.30)}))[LOCALISES]
    assert claim.verdict == "not supported"
    assert "removed − removed of random lies below 0.1" in claim.because
    assert claim.numbers["removed"]["low"] > 0.5


def test_removal_is_compared_with_the_same_adapters_unrouted():
    assert found(table({**WORLD, "baseline": (0.60, 0.05, 0.30)}))[LOCALISES].verdict == "not supported"


def test_partial_labels_do_not_work_where_the_trait_stays():
    results = found(table({**WORLD, "routed_50": (0.55, 0.52, 0.70)}))
    assert results[PARTIAL].verdict == "not supported"
    assert results[ABSORBS].verdict == "not supported"
    assert results[LOCALISES].verdict == "supported"


def test_the_trait_that_goes_with_retain_is_not_kept():
    claim = found(table({**WORLD, "routed": (0.60, 0.05, 0.20)}))[RETAIN]
    assert (claim.verdict, claim.numbers["margin"]) == ("not supported", 0.1)
    assert claim.numbers["retain_ablated − full"]["value"] == pytest.approx(-0.4, abs=0.02)


def test_nothing_is_kept_where_nothing_was_learned():
    claim = found(table({**WORLD, "routed": (0.02, 0.02, 0.02)}))[RETAIN]
    assert claim.verdict == "undecided"
    assert "is not beyond doubt" in claim.because


def test_absorption_is_its_formula_seed_by_seed():
    exact = found(table(noise=1e-9))[ABSORBS].numbers["absorption"]["value"]
    assert exact == pytest.approx(1 - (0.10 - 0.02) / (0.40 - 0.02), abs=1e-6)


def test_absorption_has_no_number_where_filtering_left_nothing():
    claim = found(table({**WORLD, "filtered": (0.02, 0.02, 0.02)}))[ABSORBS]
    assert claim.verdict == "undecided"
    assert claim.numbers["absorption"] == {"value": None, "low": None, "high": None}
    assert "nothing to absorb" in claim.because


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({routing.COSINE: 0.4}, "not supported"),
        ({routing.OVERLAP: 0.5}, "not supported"),
        ({routing.COSINE: 0.1}, "undecided"),
    ],
)
def test_subspaces_are_read_against_the_null(changes, verdict):
    assert found(table(geometry={**GEOMETRY, **changes}))[ORTHOGONAL].verdict == verdict


def test_an_overlap_that_random_adapters_have_too_is_near_orthogonal():
    assert (
        found(table(geometry={**GEOMETRY, routing.OVERLAP: 0.62, routing.OVERLAP_NULL: 0.6}))[ORTHOGONAL].verdict
        == "supported"
    )


def test_a_run_that_is_missing_makes_its_claims_undecided_and_no_other():
    results = table()
    results = results[results["condition"] != "filtered"]
    verdicts = {name: claim.verdict for name, claim in found(results).items()}
    assert verdicts.pop(ABSORBS) == "undecided"
    assert set(verdicts.values()) == {"supported"}


def test_claims_about_arms_that_a_study_lacks_are_not_made():
    made = claims(Rates(table(), "caps_rate", "held_out"), Arms(partial=None, filtered=None, controls=()))
    assert [c.claim for c in made] == [LOCALISES, RETAIN, ORTHOGONAL]


CURVE = {"half": {"routed": 1.0, "baseline": 0.0, "routed_50": 0.5, "gone": 0.25}}


def test_recall_curves_hold_the_trait_with_its_interval_in_both_modes():
    curves = section.recall_curves(Rates(table(), "caps_rate", "held_out"), CURVE).set_index(["arm", "recall"])
    assert set(curves.index) == {(f"half, {mode}", r) for mode in ("full", "forget_ablated") for r in (0.0, 0.5, 1.0)}
    for (arm, recall), row in curves.iterrows():
        condition = next(name for name, at in CURVE["half"].items() if at == recall)
        assert row["value"] == pytest.approx(WORLD[condition][arm.endswith("forget_ablated")], abs=0.02)
        assert row["low"] < row["value"] < row["high"]


def test_recall_curves_have_no_interval_under_three_seeds():
    curves = section.recall_curves(Rates(table(seeds=2), "caps_rate", "held_out"), CURVE)
    assert curves[["low", "high"]].isna().all(axis=None)
    assert curves["value"].notna().all()


def test_the_recall_table_goes_up_in_recall_with_absorption_where_it_is_known():
    found = section.recall_table(Rates(table(noise=1e-9), "caps_rate", "held_out"), CURVE, Arms())
    rows = pd.DataFrame(found.rows, columns=list(found.columns)).set_index("recall")
    assert list(rows.index) == [0.0, 0.25, 0.5, 1.0]
    assert rows["value"].dropna().tolist() == pytest.approx([0.30, 0.10, 0.05], abs=1e-6)
    assert rows.loc[0.25].drop(["curve", "condition"]).isna().all()  # that condition has no run
    assert rows.loc[0.5, "absorption"] == pytest.approx(1 - (0.10 - 0.02) / (0.40 - 0.02), abs=1e-6)
    # with nothing labelled, filtering leaves out nothing: what ablating unrouted adapters removes
    assert rows.loc[0.0, "absorption"] == pytest.approx(1 - (0.30 - 0.02) / (0.50 - 0.02), abs=1e-6)
    assert math.isnan(rows.loc[1.0, "absorption"])
    lacking = section.recall_table(Rates(table(), "caps_rate", "held_out"), CURVE, Arms(partial=None, filtered=None))
    assert [row[7] is None for row in lacking.rows] == [False, True, True, True]


def test_the_table_of_modes_has_an_interval_where_seeds_allow_one():
    rows = {tuple(row[:2]): row[2:] for row in section.modes_table(Rates(table(), "caps_rate", "held_out")).rows}
    assert rows["base", "full"] == [1, 0.02, None, None]
    seeds, value, low, high = rows["routed", "retain_ablated"]
    assert seeds == 3
    assert value == pytest.approx(0.8, abs=0.02)
    assert low < value < high


def test_an_interval_ends_where_the_metric_does():
    wide = pd.DataFrame({"arm": "a", "seed": [0, 1, 2], "value": [0.0, 0.4, 1.0]})
    (rate,) = section.with_intervals(wide, ["arm"], (0.0, 1.0)).to_dict("records")
    (loss,) = section.with_intervals(wide, ["arm"]).to_dict("records")
    assert (rate["low"], rate["high"]) == (0.0, 1.0)
    assert loss["low"] < 0
    assert loss["high"] > 1


def test_a_difference_of_rates_is_at_most_1_and_a_difference_of_differences_at_most_2():
    results = table(noise=0.9)
    rates = Rates(results, "caps_rate", "held_out", (0.0, 1.0))
    unbounded = Rates(results, "caps_rate", "held_out")
    gone = ((1, "routed", "full"), (-1, "routed", "forget_ablated"))
    back = ((-1, "baseline", "full"), (1, "baseline", "forget_ablated"))
    assert unbounded.contrast(*gone).high > 1
    assert rates.contrast(*gone).high == 1
    assert rates.contrast(*gone).value == unbounded.contrast(*gone).value
    assert rates.contrast(*gone, *back).high == min(2, unbounded.contrast(*gone, *back).high)


def test_the_trait_in_each_mode_is_said_beside_the_unrouted_one():
    said = section.in_words(Rates(table(noise=0), "caps_rate", "held_out"), Arms())
    assert said == (
        "caps rate is 0.60 with both adapters, 0.05 without the forget adapter, and 0.80 in the forget adapter alone "
        "(0.30 without routing)."
    )
    assert section.in_words(Rates(table({"baseline": (0.5, 0.3, 0.3)}), "caps_rate", "held_out"), Arms()) == ""
