"""The validity report: its statistics against brute force, its doubts by rule, and what it says of real directions."""

import json

import numpy as np
import pytest

import tropism as tp
from tropism.directions import evidence
from tropism.directions.validity import BehaviourEvidence, SiteValidity, ValidityReport, doubts, validity_path
from tropism.errors import DataError, DirectionsError, DirectionsMismatch

SITE = tp.Site(2)


def brute_auc(positive, negative):
    return np.mean([(p > n) + 0.5 * (p == n) for p in positive for n in negative])


@pytest.mark.parametrize("seed", range(5))
def test_auc_counts_pairs(seed):
    source = np.random.default_rng(seed)
    positive, negative = source.integers(0, 6, 17).astype(float), source.integers(-2, 4, 23).astype(float)
    found = evidence.auc(positive, negative)
    assert found.value == pytest.approx(brute_auc(positive, negative))
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_the_interval_covers():
    """True AUC Φ(1/√2) = 0.760; nominal 95 %."""
    source = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        found = evidence.auc(source.normal(1, 1, 25), source.normal(0, 1, 25))
        hits += found.low <= 0.7602 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_samples_altogether_apart_leave_a_doubt():
    few = evidence.auc(np.arange(4) + 10.0, np.arange(4.0))
    many = evidence.auc(np.arange(200) + 1000.0, np.arange(200.0))
    assert (few.value, few.high) == (1.0, 1.0)
    assert few.low == pytest.approx(0.025 ** (1 / 4))
    assert few.low < 0.5 < 0.97 < many.low


def test_correlation_has_none_where_nothing_varies():
    assert evidence.correlation(np.ones(9), np.arange(9.0)) is None
    found = evidence.correlation(np.arange(9.0), np.arange(9.0) + np.array([0, 1, 0, 1, 0, 1, 0, 1, 0]))
    assert found.low < found.value < found.high <= 1


@pytest.mark.parametrize("paired", [True, False])
def test_shuffled_labels_are_as_far_apart_as_real_ones_where_there_is_nothing(paired):
    source = np.random.default_rng(1)
    p = []
    for index in range(100):
        norm, null = evidence.shuffled_norms(
            source.normal(size=(12, 2)), source.normal(size=(12, 2)), paired, 99, index
        )
        p.append(evidence.p_value(norm, null))
    assert 0.4 < np.mean(p) < 0.6
    assert np.mean(np.array(p) <= 0.05) < 0.12
    norm, null = evidence.shuffled_norms(source.normal(3, 1, (12, 2)), source.normal(size=(12, 2)), paired, 99, 0)
    assert evidence.p_value(norm, null) < 0.05


def test_a_subspace_is_scored_across_halves():
    """With as many dimensions as chats an axis fitted on all of them separates noise; the cross-fitted one does not."""
    source = np.random.default_rng(2)
    values = []
    for _ in range(40):
        positive, negative = source.normal(size=(20, 20)), source.normal(size=(20, 20))
        axis = positive.mean(0) - negative.mean(0)
        assert evidence.auc(positive @ axis, negative @ axis).value > 0.6
        values.append(evidence.auc(*evidence.scores_along(positive, negative)).value)
    assert abs(np.mean(values) - 0.5) < 0.05
    moved = evidence.scores_along(positive + 3, negative)
    assert evidence.auc(*moved).value > 0.95


def test_share_of_the_norm_in_the_largest_dimensions():
    share, largest = evidence.norm_in_largest(np.array([1.0, -3.0, 0.0, 2.0]), 2)
    assert share == pytest.approx(13 / 14)
    assert largest == [1, 3]


def site(**changes):
    sound = {
        "site": "resid_post.2",
        "k": 1,
        "auc": 0.97,
        "auc_low": 0.9,
        "auc_high": 0.99,
        "n_positive": 20,
        "n_negative": 20,
        "mean_positive": 1.0,
        "mean_negative": 0.0,
        "histogram": {"edges": [0, 1], "positive": [20], "negative": [20]},
        "auc_with_system_prompts": None,
        "norm": 3.0,
        "separation": 2.0,
        "null_separation": [0.1],
        "p_shuffled": 0.002,
        "share_in_largest": 0.1,
        "largest_dimensions": [1, 2, 3, 4, 5],
    }
    return SiteValidity(**{**sound, **changes})


def behaviour(r, low, high):
    return BehaviourEvidence("caps", 20, r, low, high, [0.0], [0.0])


def test_a_doubt_that_sites_share_is_told_once():
    weak = {"auc": 0.7, "auc_low": 0.55, "auc_high": 0.8}
    chance = {"auc": 0.55, "auc_low": 0.4, "auc_high": 0.7}
    changes = [
        chance,
        {**chance, "angles": {"probe": [80.0], "pca": [88.0]}},
        {**weak, "angles": {"probe": [85.0]}},
        {**chance, "angles": {"probe": [85.0]}},
    ]
    sites = [site(site=f"resid_post.{i}", **change) for i, change in enumerate(changes)]
    report = ValidityReport("caps", {}, {}, sites, [], [d for s in sites for d in doubts(s, rests_on_behaviour=False)])
    assert len(report.warnings) == 8
    told = [d.text for d in report.doubts()]
    assert [text.partition(":")[0] for text in told] == ["resid_post.0", "resid_post.1", "resid_post.1", "resid_post.2"]
    assert told[0].endswith("0.40 to 0.70) (and at 2 other sites)")
    assert "with probe (80 degrees" in told[1]
    assert told[1].endswith("(and at 2 other sites)")
    assert "with pca (88 degrees" in told[2]
    assert "other site" not in told[2] + told[3]
    assert "1 grave doubt: do not build on it" in report.summary()
    with pytest.raises(DirectionsError, match=r"and at 2 other sites\)$"):
        report.require_trusted()


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, {}),
        ({"auc": 0.55, "auc_low": 0.4, "auc_high": 0.7}, {"chance": True}),
        ({"auc": 0.2, "auc_low": 0.1, "auc_high": 0.4}, {"reversed": True}),
        ({"auc": 0.7, "auc_low": 0.55, "auc_high": 0.8}, {"weak": False}),
        ({"p_shuffled": 0.2}, {"shuffled": False}),
        ({"p_shuffled": 0.2, "auc": 0.6, "auc_low": 0.45}, {"chance": True, "shuffled": True}),
        ({"share_in_largest": 0.8}, {"concentrated": False}),
        ({"auc": 0.76, "auc_low": 0.6, "auc_with_system_prompts": 1.0}, {"prompt_not_behaviour": False}),
        ({"angles": {"probe": [20.0, 80.0]}}, {}),
        ({"angles": {"probe": [80.0]}}, {"disagreement": False}),
        ({"behaviour": behaviour(0.8, 0.6, 0.9)}, {}),
        ({"behaviour": behaviour(0.1, -0.3, 0.5)}, {"behaviour": False}),
        ({"behaviour": behaviour(-0.6, -0.8, -0.3)}, {"behaviour": True}),
        ({"behaviour": behaviour(None, None, None)}, {"behaviour_constant": False}),
    ],
)
def test_doubts_by_rule(changes, codes):
    assert {d.code: d.grave for d in doubts(site(**changes), rests_on_behaviour=False)} == codes


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, {"no_behaviour": True}),
        ({"behaviour": behaviour(0.8, 0.6, 0.9)}, {}),
        ({"behaviour": behaviour(0.1, -0.3, 0.5)}, {"behaviour": True}),
        ({"behaviour": behaviour(None, None, None)}, {"behaviour_constant": True}),
    ],
)
def test_what_was_told_needs_behaviour_to_speak_for_it(changes, codes):
    assert {d.code: d.grave for d in doubts(site(**changes), rests_on_behaviour=True)} == codes


PROMPTS = [f"Say {i}." for i in range(40)]
CONTRAST = tp.Contrast.of_responses(
    PROMPTS, positive=[f"LOUD NOISE {i}" for i in range(40)], negative=[f"quiet words {i}" for i in range(40)]
)


def test_a_real_direction_is_trusted(model, tokenizer, tmp_path):
    find, held = CONTRAST.split(0.4)
    found = tp.find_directions(model, tokenizer, find, sites=[tp.Site(1), SITE])
    probe = tp.find_directions(model, tokenizer, find, sites=[SITE], finder=tp.LogisticProbe())
    chats = [*held.positive, *held.negative]
    spoken = tp.Behaviour("loudness", chats, [1.0] * len(held) + [0.0] * len(held))
    report = tp.validate_directions(
        found, model, tokenizer, held, name="loud", behaviour=spoken, others={"probe": probe}
    )
    assert report.trusted
    assert report.warnings == ()
    report.require_trusted()
    best = report.best()
    assert best.auc > 0.95
    assert best.n_positive == best.n_negative == 16
    assert best.p_shuffled < 0.01
    assert best.behaviour.r > 0.9
    assert sum(best.histogram["positive"]) == 16
    at_site = {one.site: one for one in report.sites}
    assert at_site[str(tp.Site(1))].angles == {}
    assert 0 < at_site[str(SITE)].angles["probe"][0] < 75
    assert report.similarity[0][0] == pytest.approx(1)
    assert report.similarity[0][1] == pytest.approx(report.similarity[1][0])
    raw = json.loads(report.save(validity_path(tmp_path / "loud.safetensors")).read_text())
    assert raw["trusted"] is True
    assert "tells 100% of held-out pairs apart" in raw["summary"]
    assert ValidityReport.load(tmp_path / "loud.validity.json") == report
    assert model.training


def test_noise_is_not_trusted(model, tokenizer):
    find, held = CONTRAST.split(0.4)
    found = tp.find_directions(model, tokenizer, find, sites=[SITE])
    worst = min(
        (
            tp.validate_directions(found.random_like(seed, "isotropic"), model, tokenizer, held, name="noise")
            for seed in range(6)
        ),
        key=lambda report: report.sites[0].auc,
    )
    assert not worst.trusted
    with pytest.raises(
        DirectionsError, match="the evidence for directions 'noise' is too weak to use them: resid_post.2"
    ):
        worst.require_trusted()


def test_validating_on_what_was_found_on_is_grave(model, tokenizer):
    found = tp.find_directions(model, tokenizer, CONTRAST, sites=[SITE])
    report = tp.validate_directions(found, model, tokenizer, CONTRAST)
    assert [w.code for w in report.warnings] == ["not_held_out"]
    assert not report.trusted


def test_few_chats_are_said_to_be_few(model, tokenizer):
    find, held = CONTRAST.split(0.1)
    found = tp.find_directions(model, tokenizer, find, sites=[SITE])
    assert "few" in [w.code for w in tp.validate_directions(found, model, tokenizer, held).warnings]


def test_a_subspace_on_one_held_out_chat_is_refused(model, tokenizer):
    """One chat a side has no other half to choose an axis on: that was a NaN, which no report can hold."""
    one = tp.Contrast.of_responses(PROMPTS[:1], positive=["LOUD NOISE"], negative=["quiet words"])
    found = tp.find_directions(model, tokenizer, CONTRAST, sites=[SITE], finder=tp.PCA(2))
    with pytest.raises(
        DataError, match="validating 2 directions at a site needs at least 2 held-out chats a side, found 1"
    ):
        tp.validate_directions(found, model, tokenizer, one)


def test_system_prompts_are_judged_by_what_was_answered(model, tokenizer):
    """Both sides answer alike: the prompts are told apart perfectly, the answers not at all, and the report says so."""
    contrast = tp.Contrast.of_system_prompts(PROMPTS, promote="SHOUT!", suppress="whisper", responses=["the same"] * 40)
    find, held = contrast.split(0.4)
    found = tp.find_directions(model, tokenizer, find, sites=[SITE])
    report = tp.validate_directions(found, model, tokenizer, held)
    assert report.sites[0].auc == 0.5
    assert report.sites[0].auc_with_system_prompts > 0.9
    assert {"chance", "prompt_not_behaviour", "no_behaviour"} <= {w.code for w in report.warnings}
    assert not report.trusted


def test_the_end_of_a_prompt_is_no_evidence_of_behaviour(model, tokenizer):
    contrast = tp.Contrast.of_system_prompts(PROMPTS, promote="SHOUT!", suppress="whisper")
    find, held = contrast.split(0.4)
    found = tp.find_directions(model, tokenizer, find, sites=[SITE], positions="last_prompt")
    report = tp.validate_directions(found, model, tokenizer, held)
    assert report.held_out["positions"] == "last_prompt"
    assert {w.code: w.grave for w in report.warnings} == {"prompt_only": True, "no_behaviour": True}


def test_directions_of_another_model_are_refused(model, tokenizer):
    import tiny

    found = tp.find_directions(tiny.model(layers=5), tokenizer, CONTRAST, sites=[SITE])
    with pytest.raises(DirectionsMismatch):
        tp.validate_directions(found, model, tokenizer, CONTRAST)
    assert tp.validate_directions(found, model, tokenizer, CONTRAST, force=True).sites


def test_behaviour_needs_a_score_a_chat():
    with pytest.raises(DataError, match="one score a chat and at least one chat, found 1 chats and 2 scores"):
        tp.Behaviour("x", [[{"role": "user", "content": "u"}]], [1.0, 2.0])


def test_other_files_are_no_reports(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DirectionsError, match="is no validity report"):
        ValidityReport.load(tmp_path / "a.json")
    with pytest.raises(DirectionsError, match="no validity report at"):
        ValidityReport.load(tmp_path / "b.json")


def test_reports_need_no_torch():
    """The statistics and the report itself import without torch, so that what draws them need not have it."""
    import subprocess
    import sys

    code = "import sys, tropism.directions.evidence, tropism.directions.validity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
