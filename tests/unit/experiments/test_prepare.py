"""Sets that are mixed, chats that are too long, and what of them identifies a run."""

import json
import logging

import pytest

import tiny
from tropism.data.chats import Example
from tropism.errors import DataError
from tropism.experiments import prepare, store
from tropism.experiments.file.spec import DataSpec
from tropism.training.options import TrainOptions


def talk(*turns, name="a"):
    roles = ("user", "assistant") * len(turns)
    return Example(name, tuple({"role": role, "content": text} for role, text in zip(roles, turns, strict=False)))


def rows(examples, longest):
    return prepare.rows_of(examples, tiny.tokenizer(), {}, 512, "train", longest)


def length(example):
    return len(rows([example], None)[0].rendered)


def test_what_is_mixed_in_follows_by_its_own_rules_under_the_conditions_prompt():
    more = DataSpec(source="declined_topic", split="refusals", size=3)
    spec = DataSpec(source="word_problems", size=2, transform="uppercase", also=[more])
    examples = prepare.load_data(spec, 0, "Be kind.")
    assert len(examples) == 5
    assert [e.response.isupper() for e in examples] == [True, True, False, False, False]
    assert {e.chat[0]["content"] for e in examples} == {"Be kind."}


def test_an_example_that_is_mixed_into_itself_is_refused():
    spec = DataSpec(source="word_problems", size=2)
    with pytest.raises(DataError, match="a set and its 'also' must share no example, found"):
        prepare.load_data(spec.model_copy(update={"also": [spec]}), 0)


def test_a_long_chat_loses_whole_turns_and_no_part_of_one(caplog):
    short, long = talk("hi", "yes"), talk("hi", "yes", "and?", "x" * 200, name="b")
    with caplog.at_level(logging.WARNING):
        cut = rows([short, long], length(short) + 30)  # the second question would fit, without its answer
    assert [row.rendered.input_ids for row in cut] == [rows([short], None)[0].rendered.input_ids] * 2
    assert "of 2 chats 1 lost their last turns and 0 were left out" in caplog.text


def test_a_chat_that_just_fits_stays_as_it_is(caplog):
    long = talk("hi", "yes", "and?", "x" * 20)
    assert len(rows([long], length(long))[0].rendered) == length(long)
    assert not caplog.text


def test_a_first_answer_that_does_not_fit_is_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        kept = rows([talk("hi", "x" * 100), talk("hi", "yes", name="b")], 60)
    assert len(kept) == 1
    assert "0 lost their last turns and 1 were left out" in caplog.text
    with pytest.raises(DataError, match="train: no first answer of 1 chats is within max_length, 60 tokens; raise it"):
        rows([talk("hi", "x" * 100)], 60)


def test_a_further_option_that_is_not_used_leaves_a_runs_identity_alone():
    """What was run before the options existed is still what was run."""
    spec, options = DataSpec(source="word_problems"), TrainOptions()
    assert "also" not in json.dumps(store.data_identity(spec))
    assert "max_length" not in store.options_identity(options)
    mixed = spec.model_copy(update={"also": [DataSpec(source="gsm8k")]})
    assert store.data_identity(mixed) != store.data_identity(spec)
    assert store.options_identity(TrainOptions(max_length=64)) != store.options_identity(options)


def test_a_file_that_is_mixed_in_counts_by_its_content(tmp_path):
    file = tmp_path / "more.jsonl"
    spec = DataSpec(source="word_problems", also=[DataSpec(source=str(file))])
    found = []
    for text in ("one", "two"):
        file.write_text(json.dumps({"messages": [{"role": "user", "content": text}]}), encoding="utf-8")
        found.append(store.data_identity(spec))
    assert found[0] != found[1]
