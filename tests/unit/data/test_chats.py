"""What a chat is: every shape that chats come in, in one form; what cannot be one, refused with its place."""

import json

import pytest

from tropism.data.chats import Example, check_chat, check_messages, is_raw_text, raw_text, with_tools
from tropism.errors import DataError

USER = {"role": "user", "content": "hello"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def message(**given):
    return check_chat([USER, {"role": "assistant", **given}], "row")[1]


def test_an_ordinary_chat_is_what_it_was():
    chat = ({"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "hi"})
    assert check_chat(list(chat), "row") == chat


def test_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"text": "b"}, "c"]
    assert message(content=parts)["content"] == "abc"
    with pytest.raises(DataError, match="row: message 1 has a part of type 'image_url'; only text"):
        message(content=[{"type": "image_url", "image_url": {}}])


@pytest.mark.parametrize(
    "call",
    [CALL, {"name": "add", "arguments": {"a": 2}}, {"function": {"name": "add", "arguments": '{"a": 2}'}}],
)
def test_tool_calls_have_one_shape(call):
    assert message(content=None, tool_calls=[call]) == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_name(name):
    assert message(content="hi", **{name: "hm"}) == {"role": "assistant", "content": "hi", "reasoning_content": "hm"}


def test_weight_0_is_kept_and_weight_1_is_every_turns():
    assert message(content="hi", weight=0)["weight"] == 0
    assert "weight" not in message(content="hi", weight=1)
    with pytest.raises(DataError, match="message 1 has weight 0.5; it must be 0"):
        message(content="hi", weight=0.5)


def test_other_keys_are_kept_for_the_template_and_nulls_are_dropped():
    made = check_chat([{**USER, "name": "Ada", "tool_calls": None, "refusal": None}], "row")
    assert made == ({**USER, "name": "Ada"},)


def test_tools_stay_with_the_chat_whatever_prompt_is_put_before_it():
    chat = check_chat([{"role": "system", "content": "s"}, USER], "row")
    for tools in ([TOOL], json.dumps([TOOL]), [TOOL["function"]]):
        given = with_tools(chat, tools, "row")
        assert [message.get("tools") for message in given] == [None, [TOOL]]
    assert with_tools(chat, [], "row") == chat
    assert check_chat(list(given), "row") == given


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([{"role": "user", "content": None}], "message 0 must have a text as content, found NoneType"),
        ([{"role": "assistant", "content": None}], "message 0 must have a text as content, found NoneType"),
        ([{**USER, "tool_calls": [CALL]}], "message 0 has tool_calls, and its role is 'user'"),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}], "a tool call must name its function"),
        ([USER, {"role": "assistant", "content": "a", "reasoning": "b", "thinking": "c"}], "they differ; keep one"),
        ([{"role": "text", "content": "a"}, USER], "message of role 'text' is a whole raw text, found 2 messages"),
        ([{"role": "developer", "content": "a"}], "found only system messages"),
        ([{"role": "user", "content": "\udc00"}], r"message 0: its content holds half of a surrogate pair, '\\udc00'"),
        ([{**USER, "tools": ["add"]}], "message 0: tools: each must be an object"),
    ],
)
def test_what_is_no_chat_is_refused_with_its_place(chat, reason):
    with pytest.raises(DataError, match=f"^row: .*{reason}|^row: {reason}"):
        check_chat(chat, "row")


@pytest.mark.parametrize("place", ["content", "reasoning_content", "tool_calls"])
def test_half_a_surrogate_pair_is_found_wherever_it_is(place):
    given = {"content": "hi", "reasoning_content": "hm", "tool_calls": [CALL]}
    broken = json.loads('"\\ud83d"')
    given[place] = [{"name": broken}] if place == "tool_calls" else broken
    with pytest.raises(DataError, match="holds half of a surrogate pair"):
        message(**given)


def test_half_a_surrogate_pair_in_an_id_or_a_target_is_refused_by_name():
    with pytest.raises(DataError, match=r"example 'x\\ud83d': id holds half of a surrogate pair"):
        Example("x\ud83d", (USER,))
    with pytest.raises(DataError, match="example 'x': target holds half"):
        Example("x", (USER,), "\ud83d")


def test_a_raw_text_is_a_chat_of_its_own():
    assert is_raw_text(raw_text("once"))
    assert not is_raw_text([USER])
    assert check_chat(list(raw_text("once")), "row") == raw_text("once")
    assert Example("x", raw_text("once")).response is None


def test_messages_may_be_none_where_a_prompt_is_meant():
    assert check_messages((), "prompt") == ()
