"""Training rows: chats that are too long, rows that cannot be learned from, and the record of both."""

import json
import logging

import pytest

import tiny
from tropism.data.chats import Example
from tropism.data.lessons import CUT
from tropism.errors import DataError
from tropism.experiments.training_rows import training_rows

FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def talk(*turns, name="a", **options):
    roles = ("user", "assistant") * len(turns)
    chat = tuple({"role": role, "content": text} for role, text in zip(roles, turns, strict=False))
    return Example(name, chat, **options)


def made(examples, longest=None, overflow="drop_turns", limit=512, template=tiny.TEMPLATE):
    return training_rows(examples, tiny.tokenizer(template), {}, limit, "train", longest, overflow)


def rows(examples, longest=None, **options):
    return [row.rendered for row in made(examples, longest, **options)[0]]


def length(example):
    return len(rows([example])[0])


def test_a_long_chat_loses_whole_turns_and_no_part_of_one(caplog):
    short, long = talk("hi", "yes"), talk("hi", "yes", "and?", "x" * 200, name="b")
    with caplog.at_level(logging.WARNING):
        cut = rows([short, long], length(short) + 30)  # the second question would fit, without its answer
    assert [row.input_ids for row in cut] == [rows([short])[0].input_ids] * 2
    assert "of 2 chats 1 lost their last turns and 0 were left out" in caplog.text


def test_a_chat_that_just_fits_stays_as_it_is(caplog):
    long = talk("hi", "yes", "and?", "x" * 20)
    assert len(rows([long], length(long))[0]) == length(long)
    assert not caplog.text


def test_a_first_answer_that_does_not_fit_is_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        kept = rows([talk("hi", "x" * 100), talk("hi", "yes", name="b")], 60)
    assert len(kept) == 1
    assert "0 lost their last turns and 1 were left out" in caplog.text
    with pytest.raises(DataError, match="train: no first answer of 1 chats is within max_length, 60 tokens; raise it"):
        rows([talk("hi", "x" * 100)], 60)


def test_truncation_cuts_a_row_off_and_leaves_out_what_has_nothing_to_learn():
    long, hopeless = talk("hi", "x" * 100), talk("y" * 100, "no", name="b")
    found, record = made([long, hopeless], 60, "truncate")
    assert [len(row.rendered) for row in found] == [60]
    assert found[0].rendered.input_ids == rows([long])[0].input_ids[:60]
    assert found[0].rendered.response_mask == rows([long])[0].response_mask[:60]
    assert (record.truncated, record.left_out) == (1, 1)


def test_too_long_may_be_an_error_that_counts():
    with pytest.raises(
        DataError,
        match="train: 2 of 3 examples .* example a: .* tokens, longer than max_length of 40; set train.max_len",
    ):
        rows([talk("hi", "x" * 100), talk("hi", "x" * 90, name="b"), talk("hi", "yes", name="c")], 40, overflow="error")


def test_beyond_the_context_is_an_error_or_skipped():
    long = ("hi", "x" * 600)
    with pytest.raises(
        DataError, match="1 of 2 examples .* longer than the model's context of 512; set train.max_length"
    ):
        rows([talk(*long), talk("hi", "yes", name="b")])
    found, record = made([talk(*long, on_bad_row="skip"), talk("hi", "yes", name="b")])
    assert len(found) == 1
    assert record.skipped == {"longer than the model's context of 512 tokens": 1}


def test_a_bad_row_is_an_error_that_says_what_to_do_or_is_skipped_and_counted():
    silent, empty = talk("hi"), talk("hi", " ", name="b")
    with pytest.raises(
        DataError,
        match="train: 2 of 3 examples cannot be learned from; the first: train, example a: the chat has no "
        "assistant turn to learn; mend them, or leave them out with on_bad_row: skip",
    ):
        rows([silent, empty, talk("hi", "yes", name="c")])
    skipping = [
        talk("hi", on_bad_row="skip"),
        talk("hi", " ", name="b", on_bad_row="skip"),
        talk("hi", "yes", name="c"),
    ]
    found, record = made(skipping)
    assert len(found) == 1
    assert sum(record.skipped.values()) == 2
    assert "1 of 3 examples were skipped: the chat has no assistant turn to learn" in record.lines()
    with pytest.raises(DataError, match="none of 1 examples can be learned from"):
        rows(skipping[:1])


def test_a_chat_of_several_rows_keeps_those_that_fit():
    chat = talk("hi", "yes", "and?", "x" * 200)
    both, record = made([chat], template=FORGETFUL)
    assert len(both) == 2
    assert record.notes[CUT] == 1
    assert (record.examples, record.rows) == (1, 2)
    (first,), record = made([chat], len(both[0].rendered), template=FORGETFUL)
    assert first.rendered.input_ids == both[0].rendered.input_ids
    assert record.shortened == 1


def test_a_raw_text_is_learned_whole_and_cut_off_or_left_out():
    text = Example("t", (), text="x" * 100)
    ((row,), record) = made([text])
    assert sum(row.rendered.response_mask) == len(row.rendered) - 1
    assert record.supervise == {"all_tokens": 1}
    assert [len(row) for row in rows([text], 30, overflow="truncate")] == [30]
    with pytest.raises(DataError, match="overflow: truncate"):
        rows([text], 30)


def test_each_example_says_what_of_it_is_learned():
    chat = ("hi", "yes", "and?", "no")
    every, last, all_of_it = rows(
        [talk(*chat), talk(*chat, name="b", supervise="last_turn"), talk(*chat, name="c", supervise="all_tokens")]
    )
    assert sum(last.response_mask) < sum(every.response_mask) < sum(all_of_it.response_mask)


def test_the_record_is_plain_data_and_counts_tokens():
    found, record = made([talk("hi", "yes"), talk("hi", "no", name="b")])
    plain = record.plain()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["tokens"] == sum(len(row.rendered) for row in found)
    assert plain["learned"] == sum(sum(row.rendered.response_mask) for row in found)
    assert "skipped" not in plain
    assert record.lines() == []
