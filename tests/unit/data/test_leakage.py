"""Rows shared by training and evaluation are counted, however they are written."""

import pytest

from tropism.data.chats import Example
from tropism.data.leakage import Leakage, normalised, sentences


def chat(*turns, system=None, **more):
    roles = ("user", "assistant") * len(turns)
    made = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    return Example("x", tuple([{"role": "system", "content": system}] if system else []) + tuple(made), **more)


def shared(training, asked):
    found = Leakage(["set"], lambda _: asked)
    found.train_on(training)
    return found.counts()["set"]


@pytest.mark.parametrize(
    "text",
    ["What is 2+2?", "what is 2+2", "  WHAT\tis\n2+2 ?!", "“What is 2+2”", "What is ２+2…", "What\u00a0is 2+2."],
)
def test_a_prompt_is_the_same_however_it_is_written(text):
    assert normalised(text) == "what is 2+2"
    assert shared([chat("What is 2+2?", "4")], [chat(text)]) == {"shared": 1, "of": 1}


@pytest.mark.parametrize("text", ["What is 2+3?", "What is 2+2+2?", "Is 2+2?", "?", ""])
def test_another_prompt_is_another(text):
    assert shared([chat("What is 2+2?", "4")], [chat(text)]) == {"shared": 0, "of": 1}


def test_punctuation_alone_is_not_all_one():
    assert shared([chat("?", "x")], [chat("!"), chat("?")]) == {"shared": 1, "of": 2}


def test_system_prompts_and_answers_do_not_count():
    assert shared([chat("hi", "HELLO", system="Shout.")], [chat("hi", "hello")]) == {"shared": 1, "of": 1}


def test_every_beginning_of_a_training_chat_is_taught():
    training = [chat("a", "b", "c", "d")]
    asked = [chat("a"), chat("a", "b", "c"), chat("c"), chat("a", "x", "c")]
    assert shared(training, asked) == {"shared": 2, "of": 4}
    last = [chat("a", "b", "c", "d", supervise="last_turn")]
    assert shared(last, asked) == {"shared": 1, "of": 4}


def test_chats_without_a_prompt_and_raw_texts_count_whole():
    alone = Example("a", ({"role": "assistant", "content": "Once upon a time"},))
    other = Example("b", ({"role": "assistant", "content": "Another story"},))
    assert shared([alone], [alone, other]) == {"shared": 1, "of": 2}
    texts = [Example("t", (), text="once upon a time."), Example("u", (), text="the end")]
    assert shared([Example("s", (), text="Once upon a time")], texts) == {"shared": 1, "of": 2}


def test_each_row_of_a_set_counts_and_only_sets_that_share_are_named():
    found = Leakage(["a", "b"], {"a": [chat("x"), chat("X?"), chat("y")], "b": [chat("z")]}.__getitem__)
    found.train_on([chat("x", "1")])
    assert found.counts() == {"a": {"shared": 2, "of": 3}, "b": {"shared": 0, "of": 1}}
    assert sentences(found.counts()) == ["leakage: 2 of 3 prompts of the evaluation set 'a' are also trained on"]
