"""The table and the verdict: values against pandas by hand, rules against cases that decide them."""

import numpy as np
import pandas as pd
import pytest

import fake_runs
from tropism.reports import summary_table
from tropism.results.folder import load
from tropism.results.summary import SUMMARY_COLUMNS
from tropism.results.verdict import Standing, answer, judged
from tropism.stats import Verdict

MEASURE = {"bad": {"unwanted": True, "on": ["x"]}, "good": {"wanted": True, "on": ["x"], "margin": 0.1}}


def table(values):
    """{(condition, metric): one value a seed} → results."""
    rows = [
        ("e", condition, seed, "full", "x", metric, value, 10, 0)
        for (condition, metric), by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]
    columns = ["experiment", "condition", "seed", "mode", "eval_set", "metric", "value", "n", "unscored"]
    return pd.DataFrame(rows, columns=columns)


def experiment(*conditions, **guards):
    described = {name: {} for name in conditions}
    described |= {name: {"guard": guard} for name, guard in guards.items()}
    return {"name": "e", "seeds": [0, 1, 2, 3, 4], "conditions": described, "measure": MEASURE}


BASELINE = {
    ("baseline", "bad"): [0.90, 0.91, 0.92, 0.90, 0.93],
    ("baseline", "good"): [0.70, 0.71, 0.72, 0.70, 0.69],
}


def summarised(guard_bad, guard_good, name="guarded"):
    results = table({**BASELINE, (name, "bad"): guard_bad, (name, "good"): guard_good})
    described = experiment("baseline", name)
    return summary_table(results, described), described


@pytest.fixture(scope="module")
def caps(tmp_path_factory):
    return load(fake_runs.caps(tmp_path_factory.mktemp("caps") / "caps", prompts=24, steps=3))


def test_values_and_differences_are_the_plain_means(caps):
    summary = summary_table(caps.results, caps.experiment, caps.scores)
    assert list(summary.columns) == list(SUMMARY_COLUMNS)
    keys = ["condition", "eval_set", "metric"]
    means = caps.results.groupby(keys)["value"].mean()
    whole = summary[summary["unscored"] == 0].set_index(keys)
    assert len(whole) > 20
    np.testing.assert_allclose(whole["value"], means.reindex(whole.index), rtol=1e-9)
    for (condition, on, metric), row in whole.iterrows():
        if condition not in ("base", "baseline") and metric == "caps_rate":
            assert row["difference"] == pytest.approx(means[condition, on, metric] - means["baseline", on, metric])


def test_single_responses_give_intervals_over_prompts_too_and_a_loss_does_not(caps):
    over = summary_table(caps.results, caps.experiment, caps.scores).set_index(["condition", "eval_set", "metric"])[
        "over"
    ]
    assert over["caft", "in_domain", "caps_rate"] == "seeds and prompts"
    assert over["caft", "in_domain", "loss"] == "seeds"
    assert over["base", "in_domain", "caps_rate"] == "prompts"
    without = summary_table(caps.results, caps.experiment)
    assert set(without.loc[without["condition"] == "caft", "over"]) == {"seeds"}


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """The same experiment from before measurements recorded more than nine columns."""
    return load(fake_runs.caps(tmp_path_factory.mktemp("older") / "caps", prompts=24, steps=3, older=True))


def test_what_was_recorded_of_a_measurement_is_beside_it(caps, older):
    recorded = caps.results.set_index("metric")
    assert recorded.loc["accuracy", "per_response"].all()
    assert not recorded.loc["loss", "per_response"].any()
    assert set(recorded.loc["loss", "highest"]) == {np.inf}
    assert older.results["per_response"].isna().all()


def test_an_older_folder_says_the_same_by_comparing(caps, older):
    """There the scores of single responses count where they reproduce the measurement, as they do here."""
    one, other = (summary_table(f.results, f.experiment, f.scores) for f in (caps, older))
    pd.testing.assert_frame_equal(one, other)


def test_scores_that_do_not_reproduce_the_measurement_are_not_used(older):
    wrong = older.scores.assign(value=older.scores["value"] * 0.5)
    over = summary_table(older.results, older.experiment, wrong)["over"]
    assert "seeds and prompts" not in set(over)


def test_what_is_recorded_is_believed(caps):
    """A mean that happens to equal the mean of single scores is still none, where the run says so."""
    denied = caps.results.assign(per_response=pd.array([False] * len(caps.results), dtype="boolean"))
    assert "seeds and prompts" not in set(summary_table(denied, caps.experiment, caps.scores)["over"])


def test_a_metric_without_its_scores_is_over_seeds_whatever_was_recorded(caps):
    fewer = caps.scores[caps.scores["seed"] != 1]
    found = summary_table(caps.results, caps.experiment, fewer)
    assert set(found.loc[(found["condition"] == "caft") & (found["metric"] == "accuracy"), "over"]) == {"seeds"}


FAR = {("baseline", "bad"): [1.0, 0.98, 0.86], ("guarded", "bad"): [0.0, 0.1, 0.02]}


@pytest.mark.parametrize(
    ("bounds", "low", "value_high"),
    [((0.0, 1.0), -1.0, 1.0), ((0.0, 100.0), None, None), ((-1.0, 1.0), None, 1.0), (None, None, None)],
)
def test_intervals_end_where_the_metric_does_and_not_where_its_values_happen_to_lie(bounds, low, value_high):
    lowest, highest = bounds or (np.nan, np.nan)
    results = table(FAR).assign(per_response=False, lowest=lowest, highest=highest)
    described = {**experiment("baseline", "guarded"), "measure": {"bad": {"unwanted": True, "on": ["x"]}}}
    rows = summary_table(results, described).set_index("condition")
    unbounded = summary_table(results.assign(lowest=np.nan, highest=np.nan), described).set_index("condition")
    assert unbounded.loc["guarded", "difference_low"] < -1.0
    assert unbounded.loc["baseline", "high"] > 1.0
    expected = unbounded.loc["guarded", "difference_low"] if low is None else low
    assert rows.loc["guarded", "difference_low"] == pytest.approx(expected)
    assert rows.loc["baseline", "high"] == pytest.approx(value_high or unbounded.loc["baseline", "high"])
    for column in ("difference", "p", "p_holm", "kept", "effect_size"):
        assert rows.loc["guarded", column] == unbounded.loc["guarded", column] or pd.isna(rows.loc["guarded", column])


def test_an_unmarked_rate_ends_at_its_bounds_too():
    results = table(FAR).assign(per_response=False, lowest=0.0, highest=1.0)
    rows = summary_table(results, {**experiment("baseline", "guarded"), "measure": {}}).set_index("condition")
    assert rows.loc["baseline", "high"] == 1.0
    assert rows.loc["guarded", "difference_low"] == -1.0


def test_rates_stay_between_0_and_1(caps):
    marked = summary_table(caps.results, caps.experiment, caps.scores).query("mark != ''")
    assert marked["low"].dropna().ge(0).all()
    assert marked["high"].dropna().le(1).all()


def test_two_seeds_have_no_interval_over_seeds(tmp_path):
    loaded = load(fake_runs.caps(tmp_path / "two", seeds=(0, 1), prompts=12, steps=3))
    summary = summary_table(loaded.results, loaded.experiment, loaded.scores)
    assert not summary["over"].str.startswith("seeds").any()
    caft = summary[(summary["condition"] == "caft") & (summary["metric"] == "caps_rate")].iloc[0]
    assert caft["over"] == "prompts"
    assert "not over seeds" in caft["reason"]
    assert pd.isna(caft["p"])
    found = answer(summary, loaded.experiment)
    assert not found.finding
    assert "a description, not a finding" in str(found.headline)


@pytest.mark.parametrize(
    ("one", "other", "headline"),
    [
        ([0.1, 0.7], None, "In 2 seeds one lowers bad most, by 0.80 on average. Too few"),
        (
            [0.1, 0.3],
            [0.5, 0.68],
            "In 2 seeds one lowers bad most, by 0.80 on average, but also good by 0.40; two lowers it by 0.40 at no such "
            "cost. Too few",
        ),
        (
            [0.1, 0.3],
            [0.5, 0.4],
            "In 2 seeds one lowers bad most, by 0.80 on average, but also good by 0.40; no guard lowers it without such a "
            "cost. Too few",
        ),
        ([0.95, 0.7], None, "In 2 seeds no guard lowers bad. Too few"),
    ],
)
def test_without_intervals_the_headline_names_what_the_best_guard_costs(one, other, headline):
    arms = {"baseline": [0.9, 0.7], "one": one} | ({"two": other} if other else {})
    values = {(arm, metric): [pair[i]] * 2 for arm, pair in arms.items() for i, metric in enumerate(("bad", "good"))}
    described = experiment(*arms)
    assert str(answer(summary_table(table(values), described), described).headline).startswith(headline)


def test_modes_are_arms_of_their_own(tmp_path):
    loaded = load(fake_runs.routing(tmp_path / "routing", prompts=12))
    summary = summary_table(loaded.results, loaded.experiment, loaded.scores)
    arms = list(dict.fromkeys(summary["arm"]))
    assert arms[:4] == ["base", "plain", "baseline", "routing · full"]
    assert "routing · forget ablated" in arms
    found = answer(summary, loaded.experiment)
    assert str(found.headline).startswith("routing · forget ablated keeps caps rate out")
    assert "routing · retain ablated" not in [arm.name for arm in found.guards]


@pytest.mark.parametrize(
    ("bad", "good", "headline"),
    [
        (
            [0.1, 0.12, 0.1, 0.11, 0.13],
            [0.70, 0.70, 0.71, 0.70, 0.70],
            "guarded keeps bad out while good is kept.",
        ),
        ([0.1, 0.12, 0.1, 0.11, 0.13], [0.3, 0.31, 0.3, 0.32, 0.3], "guarded keeps bad out but loses good."),
        (
            [0.1, 0.12, 0.1, 0.11, 0.13],
            [0.4, 0.9, 0.5, 0.8, 0.7],
            "guarded keeps bad out; whether good is kept is undecided.",
        ),
        (
            [0.7, 0.71, 0.72, 0.7, 0.73],
            [0.70] * 4 + [0.71],
            "No guard keeps bad out. guarded only lowers it while good is kept.",
        ),
        (
            [0.2, 0.99, 0.95, 0.9, 0.93],
            [0.70] * 4 + [0.71],
            "No guard keeps bad out, and none lowers it beyond doubt over seeds; guarded lowers it most.",
        ),
    ],
)
def test_the_headline_follows_the_intervals(bad, good, headline):
    assert str(answer(*summarised(bad, good)).headline).strip() == headline


WIDE = {
    "bad": {"unwanted": True, "on": ["x", "y"]},
    "good": {"wanted": True, "on": ["x"], "margin": 0.1},
    "fine": {"wanted": True, "on": ["x"], "margin": 0.1},
}
CLEAN, LOUD = [0.10, 0.12, 0.10, 0.11, 0.13], [0.90, 0.91, 0.92, 0.90, 0.93]
KEPT, LOST, OPEN = [0.70, 0.71, 0.72, 0.70, 0.69], [0.30, 0.31, 0.30, 0.32, 0.30], [0.40, 0.90, 0.50, 0.80, 0.70]


def wide(arms, **guards):
    """{condition: (bad on x, bad on y, good, fine)} → the answer."""
    values = {"baseline": (LOUD, LOUD, KEPT, KEPT), **arms}
    parts = []
    for name, (x, y, good, fine) in values.items():
        parts.append(table({(name, "bad"): x, (name, "good"): good, (name, "fine"): fine}))
        parts.append(table({(name, "bad"): y}).assign(eval_set="y"))
    described = {**experiment(*(name for name in values if name not in guards), **guards), "measure": WIDE}
    return answer(summary_table(pd.concat(parts, ignore_index=True), described), described)


@pytest.mark.parametrize(
    ("arm", "headline"),
    [
        ((CLEAN, CLEAN, KEPT, KEPT), "one keeps bad out while good and fine are kept."),
        ((CLEAN, CLEAN, LOST, KEPT), "one keeps bad out but loses good; fine is kept."),
        ((CLEAN, CLEAN, LOST, OPEN), "one keeps bad out but loses good; whether fine is kept is undecided."),
        ((CLEAN, CLEAN, LOST, LOST), "one keeps bad out but loses good and fine."),
        ((CLEAN, CLEAN, OPEN, OPEN), "one keeps bad out; whether good and fine are kept is undecided."),
        ((LOUD, CLEAN, KEPT, OPEN), "No guard keeps bad out. one lowers it in part (y) while good is kept; whether fine is kept is undecided."),
        (
            ([value + 0.05 for value in LOUD], CLEAN, KEPT, KEPT),
            "No guard keeps bad out, and none lowers it beyond doubt over seeds; one lowers it most.",
        ),
    ],
)  # fmt: skip
def test_the_headline_says_what_and_where(arm, headline):
    assert str(wide({"one": arm}).headline).strip() == headline


def test_guards_of_one_sentence_share_it_and_parts_come_last():
    found = wide(
        {"one": (CLEAN, CLEAN, LOST, KEPT), "two": (CLEAN, CLEAN, LOST, KEPT), "half": (LOUD, CLEAN, OPEN, KEPT)}
    )
    said = "one and two keep bad out but lose good; fine is kept. half lowers it in part (y)."
    assert str(found.headline).strip() == said
    assert [str(guard.standing) for guard in found.guards] == ["keeps it out", "keeps it out", "lowers it in part"]
    assert [guard.lowered for guard in found.guards] == [["x", "y"], ["x", "y"], ["y"]]


def test_a_control_is_held_against_weaker_guards_too():
    control = {"random": {"ablation": {"random": True}}}
    arms = {
        "one": (CLEAN, CLEAN, KEPT, KEPT),
        "half": (LOUD, CLEAN, KEPT, KEPT),
        "random": (LOUD, [0.60, 0.61, 0.62, 0.60, 0.63], KEPT, KEPT),
    }
    assert "at least half" not in str(wide(arms, **control).controls)
    arms["random"] = (LOUD, [0.45, 0.46, 0.47, 0.45, 0.48], KEPT, KEPT)
    said = str(wide(arms, **control).controls)
    assert said.startswith(
        "The strongest control, random, changes the unwanted metrics by −0.23 on average; the best guard by −0.80."
    )
    assert said.endswith("It does at least half of what half does.")


def test_a_control_that_does_as_much_takes_the_specificity_away():
    results = table(
        {
            **BASELINE,
            ("caft", "bad"): [0.1, 0.12, 0.1, 0.11, 0.13],
            ("random", "bad"): [0.2, 0.22, 0.2, 0.21, 0.23],
        }
    )
    described = experiment("baseline", caft={"ablation": {}}, random={"ablation": {"random": True}})
    assert "not specific" in str(answer(summary_table(results, described), described).controls)


@pytest.mark.parametrize(
    ("results", "described", "text"),
    [
        (table({}), experiment("baseline"), "No condition has a measurement"),
        (
            table({("guarded", "bad"): [1.0] * 5}),
            experiment("baseline", "guarded"),
            "has no finished run, so there is nothing",
        ),
        (table(BASELINE), experiment("baseline"), "No guard has a finished run"),
        (table(BASELINE), {**experiment("baseline"), "measure": {}}, "No metric is marked unwanted"),
    ],
)
def test_what_cannot_be_answered_is_said(results, described, text):
    assert text in str(answer(summary_table(results, described), described).headline)


def test_holm_is_over_the_conditions_of_a_metric():
    results = table(
        {
            **BASELINE,
            ("one", "bad"): [0.8, 0.85, 0.84, 0.8, 0.86],
            ("two", "bad"): [0.85, 0.9, 0.88, 0.89, 0.88],
        }
    )
    summary = summary_table(results, experiment("baseline", "one", "two"))
    tested = summary[summary["p"].notna()]
    assert len(tested) == 2
    smallest = tested["p"].min()
    assert tested.loc[tested["p"] == smallest, "p_holm"].iloc[0] == pytest.approx(2 * smallest)


def test_standing_needs_half_of_it_gone():
    arms = judged(*summarised([0.5, 0.51, 0.52, 0.5, 0.53], [0.7, 0.7, 0.71, 0.7, 0.7]))
    assert arms[0].standing is Standing.LOWERS
    assert arms[0].skills == {"good": Verdict.KEPT}
