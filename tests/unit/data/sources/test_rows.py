"""Rows as examples: every shape of the field, what is ambiguous refused, what is not used reported."""

import json
import re

import pytest

from tropism.data.sources.rows import FIELDS, RowReader, chosen_columns, example_of_row, final_answer
from tropism.errors import DataError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CHAT = (USER, ANSWER)


def read(row, columns=None):
    return example_of_row(row, "f line 1", "f/1", columns)


@pytest.mark.parametrize("column", FIELDS["messages"])
@pytest.mark.parametrize("written", [list(CHAT), [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]])
def test_chats(column, written):
    assert read({column: written}).chat == CHAT
    assert read({column: json.dumps(written)}).chat == CHAT


@pytest.mark.parametrize("prompt", FIELDS["prompt"])
@pytest.mark.parametrize("response", FIELDS["completion"])
def test_pairs_by_every_pair_of_names(prompt, response):
    assert read({prompt: "q", response: "a"}).chat == CHAT


def test_trl_conversational_pairs():
    assert read({"prompt": [USER], "completion": [ANSWER]}).chat == CHAT
    system = {"role": "system", "content": "s"}
    assert read({"prompt": [system, USER], "completion": "a"}).chat == (system, *CHAT)


def test_alpaca_and_its_relatives():
    assert read({"instruction": "q", "input": "", "output": "a"}).chat == CHAT
    assert read({"instruction": "q", "input": "x", "output": "a"}).prompt == ({"role": "user", "content": "q\n\nx"},)
    assert read({"instruction": "q", "context": "x", "response": "a"}).prompt[0]["content"] == "q\n\nx"
    assert read({"input": "q", "output": "a"}).chat == CHAT


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}]},
        {"prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "b"}]},
        {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "b"}]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"},
    ],
)
def test_preferences_by_either_side(row):
    reader = RowReader()
    assert reader.example(row, "f line 1", "x").chat == CHAT
    assert "columns: {completion: rejected} takes the other side" in reader.notes()[1]
    for name in ("completion", "chosen", "response"):
        assert read(row, {name: "rejected"}).response == "b"


def test_the_chat_of_a_row_gives_way_to_a_side_that_was_named():
    row = {
        "prompt": "q",
        "messages": list(CHAT),
        "chosen": [USER, ANSWER],
        "rejected": [USER, {**ANSWER, "content": "b"}],
    }
    assert read(row).response == "a"
    assert read(row, {"completion": "rejected"}).response == "b"


def test_a_question_has_no_response_and_says_which_columns_it_leaves():
    reader = RowReader()
    example = reader.example({"prompt": "q", "response_0": "x", "response_1": "y"}, "f line 1", "x")
    assert example.response is None
    assert reader.notes() == ["columns that are not used: response_0, response_1"]


def test_columns_without_a_value_are_as_if_they_were_not_there():
    assert read({"messages": None, "prompt": "q", "completion": "a"}).chat == CHAT
    assert read({"prompt": "q", "completion": None}).response is None


def test_raw_text():
    example = read({"text": "Some prose.", "title": "x"})
    assert (example.text, example.chat, example.response) == ("Some prose.", (), None)
    assert read({"body": "Prose.", "prompt": "q"}, {"text": "body"}).text == "Prose."
    with pytest.raises(DataError, match="f line 1: text must be a text that is not empty, found '  '"):
        read({"text": "  "})


def test_system_columns_come_first():
    for name in ("system", "system_prompt"):
        assert read({name: "s", "question": "q", "response": "a"}).chat[0] == {"role": "system", "content": "s"}
        assert read({name: "", "question": "q", "response": "a"}).chat == CHAT
    own = [{"role": "system", "content": "s"}, *CHAT]
    assert read({"messages": own, "system": "s"}).chat == tuple(own)
    with pytest.raises(DataError, match="the chat has a system message, and a column another one"):
        read({"messages": own, "system": "t"})


def test_tools_of_a_row_go_with_its_chat():
    tool = {"name": "add", "parameters": {}}
    for written in ([tool], json.dumps([tool]), [{"type": "function", "function": tool}]):
        first = read({"messages": list(CHAT), "tools": written}).chat[0]
        assert first["tools"] == [{"type": "function", "function": tool}]
    assert "tools" not in read({"messages": list(CHAT), "tools": "[]"}).chat[0]
    reader = RowReader()
    assert reader.example({"text": "Prose.", "tools": [tool]}, "f line 1", "x").text == "Prose."
    assert reader.notes() == ["columns that are not used: tools"]


def test_columns_map_other_names():
    assert read({"q": "q", "a": "a"}, {"prompt": "q", "completion": "a"}).chat == CHAT
    assert read({"q": "q", "a": "a"}, {"question": "q", "answer": "a"}).chat == CHAT
    assert read({"dialogue": list(CHAT)}, {"messages": "dialogue"}).chat == CHAT
    assert read({"q": "q", "answer": "a", "key": 7}, {"prompt": "q", "id": "key"}).id == "7"


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"x": 1, "y": 2}, None, "a row needs a chat ('messages'), a prompt with its response, or 'text'; found the keys x, y"),
        ({}, None, "found the keys none"),
        ({"question": "q", "answer": "a", "response": "b"}, None, "response and answer could each be the completion; say which one by columns: {completion: response}"),
        ({"prompt": "q", "question": "r", "answer": "a"}, None, "prompt and question could each be the prompt"),
        ({"messages": list(CHAT), "conversations": list(CHAT)}, None, "messages and conversations could each be the messages"),
        ({"answer": "a"}, None, "a response needs its prompt; map it by columns: {prompt: NAME}"),
        ({"prompt": "q"}, {"completion": "z"}, "columns maps completion to 'z', which the row does not have; it has the keys prompt"),
        ({"prompt": "q", "completion": 1.5}, None, "a prompt or response must be a text or a list of messages, found float"),
        ({"prompt": "q", "id": "\ud83d"}, None, "id holds half of a surrogate pair"),
        ({"prompt": [USER], "input": "x"}, None, "an input follows an instruction that is a text, found list"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_line(row, columns, message):
    with pytest.raises(DataError, match=re.escape("f line 1: ") + ".*" + re.escape(message)):
        read(row, columns)


def test_an_unknown_key_of_columns_is_refused():
    with pytest.raises(
        DataError, match="columns: 'promt' is nothing that a row is read for; available: messages, prompt"
    ):
        chosen_columns({"promt": "q"})
    with pytest.raises(DataError, match="columns: 'question' gives the prompt a second time"):
        chosen_columns({"prompt": "a", "question": "b"})


def test_a_column_that_no_row_has_is_refused_after_the_last_row():
    reader = RowReader({"system": "sys"})
    reader.example({"prompt": "q", "completion": "a"}, "f line 1", "x")
    with pytest.raises(
        DataError, match="columns maps system to 'sys', and no row has that column; the rows have completion"
    ):
        reader.check_columns_seen("f.jsonl")
    reader.example({"prompt": "q", "completion": "a", "sys": "s"}, "f line 2", "x")
    reader.check_columns_seen("f.jsonl")


def test_columns_that_are_not_used_are_named_once_over_all_rows():
    reader = RowReader()
    for row in ({"prompt": "q", "a": 1}, {"prompt": "q", "b": 1}, {"prompt": "q", "a": 2, "provenance": {}}):
        reader.example(row, "f line 1", "x")
    assert reader.notes() == ["columns that are not used: a, b"]


@pytest.mark.parametrize(
    ("row", "route"),
    [
        ({"route": "forget"}, "forget"), ({"route": 2}, "retain"), ({"route": "0"}, "unlabelled"),
        ({"labels": {"route": 1}}, "forget"), ({"labels": '{"route": "retain"}'}, "retain"),
        ({"labels.route": "forget"}, "forget"), ({"labels": {"route": "forget"}, "route": 1}, "forget"),
        ({"route": "", "labels": ""}, None), ({"labels": {"trait": True}}, None),
    ],
)  # fmt: skip
def test_routes_by_name_or_id_on_top_or_among_labels(row, route):
    assert read({"prompt": "q", "completion": "a", **row}).labels.get("route") == route


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"route": "forgot"}, "f line 1: route must be one of unlabelled (0), forget (1), retain (2), found 'forgot'"),
        ({"labels": {"route": 3}}, "route must be one of"),
        ({"labels": {"route": True}}, "route must be one of"),
        (
            {"labels": {"route": "forget"}, "route": 2},
            "the column says route 'retain', and labels say 'forget'; keep one",
        ),
        ({"labels": ["forget"]}, "f line 1: labels must be an object, found list"),
    ],
)
def test_labels_that_mean_nothing_are_refused_with_the_line(row, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read({"prompt": "q", "completion": "a", **row})


@pytest.mark.parametrize(
    ("response", "target"),
    [
        ("3 + 4 = 7\n#### 7", "7"), ("#### -1,234.50", "-1234.50"), ("so $18.\n#### $18", "18"), ("#### 5%\n", "5"),
        ("#### 3 apples", None), ("#### 7\nmore", None), ("no number", None), ("#### 1/2", None),
    ],
)  # fmt: skip
def test_a_response_that_ends_in_a_marked_number_gives_the_target(response, target):
    assert final_answer(response) == target
    assert read({"question": "q", "answer": response}).target == target
    assert read({"question": "q", "answer": response, "target": "x"}).target == "x"
