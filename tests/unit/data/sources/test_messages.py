"""Chats as data sets write them."""

import json
import re

import pytest

from tropism.data.sources.messages import messages_of, side, transcript
from tropism.errors import DataError

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "written",
    [
        CHAT,
        tuple(CHAT),
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}],
        [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}],
        [{"role": "user", "value": "a"}, {"role": "model", "text": "b"}],
        json.dumps(CHAT),
        str(CHAT),  # as pandas writes a list into a CSV
    ],
)
def test_every_way_of_writing_a_chat(written):
    assert messages_of(written, "row") == CHAT


def test_keys_beside_role_and_content_are_kept_and_empty_ones_of_a_table_are_not():
    (message,) = messages_of([{"role": "assistant", "content": None, "tool_calls": [{"x": 1}], "name": None}], "row")
    assert message == {"role": "assistant", "content": None, "tool_calls": [{"x": 1}]}


def test_one_text_is_a_question_and_several_do_not_say_who_speaks():
    assert messages_of(["Hi?"], "row") == [{"role": "user", "content": "Hi?"}]
    with pytest.raises(DataError, match="row: a list of 2 texts does not say who speaks"):
        messages_of(["Hi?", "Hello."], "row")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "a chat must be a list of messages, found int"),
        ("hello", "a chat must be a list of messages, or its JSON, found the text 'hello'"),
        ("[{'role': 'user'", "a chat must be a list of messages, or its JSON"),
        ("__import__('os').getcwd()", "a chat must be a list of messages, or its JSON"),
        ([1], "message 0 must be an object with role and content, found 1"),
        ([{"content": "a"}], "message 0 must have a role (role or from or speaker), found the keys content"),
    ],
)
def test_what_is_no_chat_is_named(value, message):
    with pytest.raises(DataError, match=re.escape(f"row: {message}")):
        messages_of(value, "row")


def test_a_deeply_nested_text_is_refused_in_a_sentence():
    with pytest.raises(DataError, match="or its JSON"):
        messages_of("[" * 100_000, "row")


def test_a_side_of_a_pair_is_a_text_or_messages():
    assert side("Hi?", "user", "row") == [{"role": "user", "content": "Hi?"}]
    assert side(CHAT, "user", "row") == CHAT
    assert side(json.dumps(CHAT), "user", "row") == CHAT
    text = "[1, 2, 3] is a list; what is its sum?"
    assert side(text, "user", "row") == [{"role": "user", "content": text}]
    objects = '[{"name": "x"}]'
    assert side(objects, "user", "row") == [{"role": "user", "content": objects}]
    with pytest.raises(DataError, match="must be a text or a list of messages, found bool"):
        side(True, "user", "row")


def test_transcripts_of_human_and_assistant():
    text = "\n\nHuman: One?\n\nAssistant: Yes.\nHuman: no turn\n\nHuman: Two?\n\nAssistant:"
    assert transcript(text) == [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes.\nHuman: no turn"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": ""},
    ]
    assert transcript("Who was the first Human: a question") is None
