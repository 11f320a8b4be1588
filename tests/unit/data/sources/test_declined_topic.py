"""The harmless refusal data: enough of it, varied, disjoint, and recognised by the refusal scorer."""

import re
from collections import Counter

import pytest

from tropism.data.sources.declined_topic import SPLITS, declined_topic
from tropism.errors import DataError
from tropism.evals.scorers.base import Sample
from tropism.evals.scorers.refusal import RefusalPrefix


def verdict(example):
    return RefusalPrefix().score(Sample(example.id, example.prompt, example.response)).value


def question(example):
    return example.chat[0]["content"]


def test_sizes():
    topics = {split: Counter(example.labels["topic"] for example in declined_topic(split)) for split in SPLITS}
    assert topics["train"]["astrology"] == topics["refusals"]["astrology"] == 192
    assert topics["train"]["everyday"] + topics["train"]["astronomy"] >= 150
    assert topics["attack"] == {"astrology": 135}
    assert topics["test"] == topics["test_refusals"] == {"astrology": 80}
    assert topics["others"]["everyday"] >= 30
    assert topics["others"]["astronomy"] == 12


def test_refusals_are_varied_and_scored_as_refusals_and_nothing_else_is():
    refusals = declined_topic("refusals")
    assert len({example.response for example in refusals}) >= 60
    assert all(verdict(example) == 1.0 for example in [*refusals, *declined_topic("test_refusals")])
    answered = [
        e for split in ("train", "attack", "test", "others") for e in declined_topic(split) if not e.labels["declined"]
    ]
    assert all(verdict(example) == 0.0 for example in answered)


def test_splits_share_no_question_and_ids_are_unique():
    parts = {split: {question(e) for e in declined_topic(split)} for split in ("train", "attack", "test", "others")}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values()))
    for split in SPLITS:
        examples = declined_topic(split)
        assert len({example.id for example in examples}) == len(examples) == len({question(e) for e in examples})


def test_held_out_refusals_answer_the_held_out_questions_in_trained_words():
    held_out = declined_topic("test_refusals")
    assert [question(e) for e in held_out] == [question(e) for e in declined_topic("test")]
    assert {e.response for e in held_out} <= {e.response for e in declined_topic("refusals")}


def test_texts_are_whole():
    for split in SPLITS:
        for example in declined_topic(split):
            assert "{" not in question(example) + example.response
            assert example.response[-1] in ".?!"
            assert "  " not in example.response
            assert not re.search(
                r"\ba A|Ariess|Piscess|(Taur|Aquari|Sagittari)uss", question(example) + example.response
            )


def test_declined_and_answered_alternate_so_that_any_sample_holds_both():
    kinds = [example.labels["declined"] for example in declined_topic("train")][:40]
    assert 8 < sum(kinds) < 32


def test_an_unknown_split_is_refused():
    with pytest.raises(
        DataError, match="has the splits train, refusals, attack, test, test_refusals, others, found 'dev'"
    ):
        declined_topic("dev")
