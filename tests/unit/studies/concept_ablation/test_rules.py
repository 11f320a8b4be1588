"""The rules of the concept-ablation study on tables whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest

from tropism.errors import RunFolderError, UsageError
from tropism.stats import Estimate
from tropism.studies.concept_ablation import figures as figure
from tropism.studies.concept_ablation import rules, section
from tropism.studies.concept_ablation.rules import Arm, Asked, mechanism, representational, trade_off, training_dynamics

ARMS = [
    Arm("caft", "ablation", "caps", "both"),
    Arm("backward", "gradient_projection", "caps"),
    Arm("random", "ablation", "caps", "both", random=True),
]
TRAIT, TASK, BROKEN = ("caps", "out"), ("works", "in"), ("perplexity", "out")
ASKED = Asked("baseline", TRAIT, {TASK: 1, BROKEN: -1}, margin=0.1)


def scores(**rates):
    """`[5 seeds, 40 prompts]` a condition and metric, about a rate, with a little noise of seed and prompt."""
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, (5, 1)) + generator.normal(0, 0.02, (1, 40))
    return {name: rate + noise + generator.normal(0, 0.005, (5, 40)) for name, rate in rates.items()}


def cells(tables):
    def found(column, conditions):
        held = tables.get(column, {})
        return [held[name] for name in conditions] if set(conditions) <= set(held) else None

    return found


def verdicts(trait, task=None, broken=None):
    tables = {TRAIT: scores(**trait), TASK: scores(**(task or {})), BROKEN: scores(**(broken or {}))}
    return [claim.verdict for claim in rules.hypotheses(ARMS[0], ARMS[1], ASKED, cells(tables))]


def test_equal_removal_is_training_dynamics_and_not_representation():
    kept = {"caft": 0.2, "backward": 0.9}
    found = verdicts({"baseline": 0.9, "caft": 0.1, "backward": 0.12}, kept, {"caft": 5.0, "backward": 4.0})
    assert found == ["supported", "not supported", "supported"]


def test_removal_by_forward_alone_is_representation():
    found = verdicts({"baseline": 0.9, "caft": 0.1, "backward": 0.85}, {"caft": 0.5, "backward": 0.5})
    assert found == ["not supported", "supported", "undecided"]


def test_less_coherence_undoes_the_trade_off():
    kept = {"caft": 0.2, "backward": 0.9}
    found = verdicts({"baseline": 0.9, "caft": 0.1, "backward": 0.12}, kept, {"caft": 4.0, "backward": 5.0})
    assert found[2] == "not supported"


def test_nothing_removed_supports_nothing():
    assert verdicts({"baseline": 0.9, "caft": 0.9, "backward": 0.9})[:2] == ["not supported", "not supported"]


def test_two_seeds_and_missing_runs_cannot_be_said():
    two = {name: one[:2] for name, one in scores(baseline=0.9, caft=0.1, backward=0.1).items()}
    claims = rules.hypotheses(ARMS[0], ARMS[1], ASKED, cells({TRAIT: two}))
    assert [claim.verdict for claim in claims] == ["undecided"] * 3
    assert claims[0].numbers["E(forward)"]["value"] == pytest.approx(0.8, abs=0.02)
    assert claims[0].numbers["E(forward)"]["low"] is None
    none = rules.hypotheses(ARMS[0], ARMS[1], ASKED, cells({}))
    assert {claim.verdict for claim in none} == {"undecided"}
    assert "no finished run" in none[0].because


def between(low, high):
    return Estimate((low + high) / 2, low, high, "seeds", "", 0.01, 5, 40)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        ((-0.05, 0.05), "supported"),
        ((0.2, 0.3), "not supported"),
        ((-0.3, -0.2), "not supported"),
        ((0.0, 0.2), "undecided"),
    ],
)
def test_training_dynamics_is_decided_by_the_gap(gap, expected):
    assert training_dynamics(between(0.6, 0.8), between(0.5, 0.7), between(*gap), 0.1) == expected


@pytest.mark.parametrize(
    ("ratio", "expected"), [((0.1, 0.3), "supported"), ((-0.3, -0.1), "not supported"), ((-0.1, 0.1), "undecided")]
)
def test_representational_is_decided_by_the_ratio(ratio, expected):
    assert representational(between(0.6, 0.8), between(*ratio), 0.1) == expected


NONE = Estimate(0.5, None, None, "", "too few", None, 2, 1)


@pytest.mark.parametrize(
    ("forward", "backward", "gap", "ratio", "expected"),
    [
        (
            between(0.6, 0.8),
            between(0.6, 0.8),
            between(-0.03, 0.03),
            between(-0.8, -0.5),
            "training dynamics",
        ),
        (between(0.6, 0.8), between(0.1, 0.2), between(0.4, 0.7), between(0.3, 0.5), "representational"),
        (between(0.6, 0.8), between(0.4, 0.6), between(0.1, 0.3), between(-0.4, -0.1), "undecided"),
        (between(-0.1, 0.02), between(-0.1, 0.02), between(-0.1, 0.1), between(-0.1, 0.1), "not supported"),
        (between(0.6, 0.8), NONE, NONE, NONE, "undecided"),
    ],
)
def test_the_mechanism_is_picked_by_rule(forward, backward, gap, ratio, expected):
    assert mechanism(forward, backward, gap, ratio, 0.05) == expected


@pytest.mark.parametrize(
    ("backward", "gains", "expected"),
    [
        (between(0.6, 0.8), [between(0.1, 0.2)], "supported"),
        (between(0.6, 0.8), [between(0.1, 0.2), between(-0.3, -0.1)], "not supported"),
        (between(0.6, 0.8), [between(-0.1, 0.2)], "undecided"),
        (between(-0.1, 0.8), [between(0.1, 0.2)], "undecided"),
        (NONE, [between(0.1, 0.2)], "undecided"),
    ],
)
def test_the_trade_off_is_picked_by_rule(backward, gains, expected):
    assert trade_off(backward, gains) == expected


def inside(**ratios):
    """Runs whose variance is a factor of the base's, at two sites, and whose cosine is lower by a tenth of it."""
    rows = []
    generator = np.random.default_rng(1)
    for condition, factor in {"base": 1.0, **ratios}.items():
        for seed in [None] if condition == "base" else range(5):
            for site, start in (("resid_post.1", 2.0), ("resid_post.2", 8.0)):
                wobble = 1.0 if seed is None else math.exp(generator.normal(0, 0.02))
                row = dict.fromkeys(rules.COLUMNS, 0.0)
                row |= {"condition": condition, "seed": seed, "directions": "caps", "site": site}
                row |= {"variance_along": start * factor * wobble, "cosine": 0.5 - 0.1 * factor * wobble}
                rows.append(row)
    return pd.DataFrame(rows)


def test_the_variance_is_suppressed_or_kept_by_rule():
    table = rules.against_base(inside(caft=0.1, backward=0.9, baseline=1.5))
    ratio = rules.over_sites(table, "caft", "caps", "variance_ratio", log=True)
    assert math.exp(ratio.value) == pytest.approx(0.1, rel=0.05)
    assert rules.judge(rules.expectation(ARMS[0], "variance"), ratio) == "supported"
    assert rules.judge("kept", ratio) == "not supported"
    kept = rules.over_sites(table, "backward", "caps", "variance_ratio", log=True)
    assert rules.judge(rules.expectation(ARMS[1], "variance"), kept) == "supported"
    # a tenth less is no suppression, however sure one is of it
    assert rules.judge("suppressed", kept) == "not supported"
    more = rules.over_sites(table, "baseline", "caps", "variance_ratio", log=True)
    assert rules.judge("suppressed", more) == "not supported"


def test_the_cosine_is_lowered_by_rule():
    table = rules.against_base(inside(backward=3.0, baseline=0.5))
    assert rules.judge("lowered", rules.over_sites(table, "backward", "caps", "cosine_change")) == "supported"
    assert rules.judge("lowered", rules.over_sites(table, "baseline", "caps", "cosine_change")) == "not supported"
    assert rules.judge("lowered", None) == "undecided"


def test_nothing_is_expected_of_controls_and_steering():
    assert rules.expectation(ARMS[2], "variance") == ""
    assert rules.expectation(Arm("s", "steering", "caps"), "variance") == ""
    assert rules.judge("", between(-1, -0.5)) == ""


def test_a_guard_is_set_against_random_directions_of_its_kind():
    tables = {TRAIT: scores(baseline=0.9, caft=0.1, backward=0.5, random=0.88)}
    found = section.analyse(rules.against_base(inside(caft=0.1, baseline=1.0)), ARMS, ASKED, cells(tables))
    (claim,) = [claim for claim in found.claims if "random directions" in claim.claim]
    assert (claim.claim, claim.verdict) == ("caft removes more than random directions of the same rank", "supported")
    removed = {row[1]: row[3] for row in found.tables[0].rows}
    assert removed["caft"].startswith("+0.8")
    assert removed["random"].startswith("+0.02")


def test_without_a_base_nothing_has_a_before():
    table = rules.against_base(inside(caft=0.1).query("condition != 'base'"))
    assert table["variance_ratio"].isna().all()
    assert rules.over_sites(table, "caft", "caps", "variance_ratio", log=True) is None


def test_a_wrong_table_is_an_error():
    with pytest.raises(UsageError, match="lacks the columns cosine"):
        rules.against_base(inside().drop(columns="cosine"))
    with pytest.raises(UsageError, match="base, caps at resid_post.1 is there twice"):
        rules.against_base(pd.concat([inside(), inside()]))


def test_the_figure_draws_what_was_measured_and_refuses_an_empty_table(tmp_path):
    table = rules.against_base(inside(caft=0.1, baseline=1.5))
    name = figure.draw(table, {"caft": "caps", "absent": "caps"}, ["baseline", "caft", "absent"], tmp_path)
    svg = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    assert ">caft<" in svg
    assert ">absent<" not in svg
    with pytest.raises(RunFolderError, match="must have rows and the columns condition, directions"):
        figure.draw(table[:0], {}, ["baseline"], tmp_path)
