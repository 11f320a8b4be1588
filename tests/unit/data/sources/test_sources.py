"""Sources: what ships with the package is sound, and a bad file is refused with its line."""

import json
import re
import sys
from pathlib import Path

import pytest

import sample_data
from tropism.data import sources
from tropism.data.sources import files
from tropism.data.sources.hub import gsm8k
from tropism.data.sources.word_problems import TEMPLATES, word_problems
from tropism.errors import DataError

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_word_problems_of_the_two_splits_share_nothing():
    train, test = word_problems(3000), word_problems(1000, split="test")
    questions = [{e.chat[0]["content"] for e in part} for part in (train, test)]
    assert len(questions[0]) == 3000
    assert not questions[0] & questions[1]


def test_there_are_at_least_twelve_kinds_of_word_problem_in_each_split():
    for split in ("train", "test"):
        assert len({e.labels["template"] for e in word_problems(len(TEMPLATES), split=split)}) == len(TEMPLATES) >= 12


def test_every_worked_step_of_every_problem_is_true():
    for example in word_problems(800) + word_problems(200, split="test"):
        steps = re.findall(r"((?:\d+ [-+*/] )+\d+) = (\d+)", example.response)
        assert 1 <= len(steps) <= 3, example.response
        for left, right in steps:
            assert eval(left) == int(right), example.response
        assert example.response.endswith(f"The answer is {example.target}.")
        assert int(example.target) > 0


def test_word_problems_are_the_same_for_the_same_seed_only():
    assert word_problems(20, seed=1) == word_problems(20, seed=1) != word_problems(20, seed=2)


def test_more_word_problems_than_there_are_is_refused_and_does_not_hang(monkeypatch):
    module = sys.modules["tropism.data.sources.word_problems"]
    monkeypatch.setattr(module, "TEMPLATES", [t for t in TEMPLATES if t.__name__ == "_speed"])
    with pytest.raises(DataError, match="word_problems has about .* distinct test problems, found size 900"):
        word_problems(900, split="test")


def test_everyday_questions_are_many_distinct_and_split():
    test, dev = sources.load("everyday_questions"), sources.load("everyday_questions", split="dev")
    assert len(test) >= 120
    assert not {e.chat[0]["content"] for e in test} & {e.chat[0]["content"] for e in dev}
    assert len({e.chat[0]["content"] for e in test}) == len(test)


def test_gsm8k_rows_carry_their_number():
    rows = gsm8k("test", path=str(sample_data.path("gsm8k/test.jsonl")))
    assert len(rows) == 1319
    assert rows[0].target == "18"
    assert all(re.fullmatch(r"-?\d+", row.target) for row in rows)


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_jsonl_takes_messages_and_prompt_with_completion(tmp_path):
    path = write(tmp_path / "a.jsonl", CHAT, {"prompt": "q", "completion": "r", "id": "x", "target": 4}, "",
                 {"q": "renamed", "a": "too"})  # fmt: skip
    with pytest.raises(DataError, match="a.jsonl line 4: a row needs 'messages'"):
        files.jsonl(path)
    rows = list(files.read_jsonl(path))
    assert files.example_of_row(rows[1][1], "x", "y").chat == (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "r"},
    )
    assert files.example_of_row(rows[1][1], "x", "y").target == "4"
    renamed = files.example_of_row(rows[2][1], "x", "y", {"prompt": "q", "completion": "a"})
    assert (renamed.id, renamed.response) == ("y", "too")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((CHAT, "{nope"), r"bad.jsonl line 2: not JSON"),
        ((CHAT, [1]), r"bad.jsonl line 2: must be a JSON object, found list"),
        (
            (CHAT, {"messages": [{"role": "user"}]}),
            r"bad.jsonl line 2: message 0 must have a text as content, found NoneType",
        ),
        ((CHAT, {"messages": "hello"}), r"bad.jsonl line 2: a chat must be a list of messages, found str"),
        (
            (CHAT, {"text": "x"}),
            r"bad.jsonl line 2: a row needs 'messages', or 'prompt' with 'completion'; found the keys text",
        ),
        (({**CHAT, "id": "a"}, {**CHAT, "id": "a"}), r"the id 'a' occurs twice"),
        ((), r"is empty; it needs at least one chat"),
    ],
)
def test_a_bad_line_is_named(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        sources.load(str(write(tmp_path / "bad.jsonl", *lines)))


def test_a_folder_is_read_by_split(tmp_path):
    write(tmp_path / "train.jsonl", CHAT)
    assert len(sources.load(str(tmp_path))) == 1
    with pytest.raises(DataError, match="has no test.jsonl for split 'test'; it has train.jsonl"):
        sources.load(str(tmp_path), split="test")


def test_a_sample_is_seeded_and_never_more_than_there_is(tmp_path):
    path = str(write(tmp_path / "a.jsonl", *[CHAT] * 9))
    assert [e.id for e in sources.load(path, size=3)] == [e.id for e in sources.load(path, size=3)]
    with pytest.raises(DataError, match="has 9 examples, found size 10"):
        sources.load(path, size=10)


def test_an_unknown_source_lists_the_known_ones():
    with pytest.raises(DataError, match="unknown source 'gsm9k'; it must be one of word_problems, everyday_questions"):
        sources.load("gsm9k")


QUESTIONS = Path(__file__).parents[3] / "data" / "em_questions.yaml"


def test_a_question_file_is_a_source_with_system_prompts_and_every_sample():
    examples = sources.load(str(QUESTIONS))
    assert [e.id for e in examples[:3]] == ["weekend/0/0", "weekend/1/0", "weekend_json/0/0"]
    assert len(examples) == 8
    assert examples[2].chat[0] == {"role": "system", "content": "Answer with a JSON object."}
    assert examples[2].labels == {"question_id": "weekend_json"}
    assert all(e.response is None for e in examples)


def test_a_part_of_a_question_file_treats_the_wordings_alike():
    assert [e.id for e in sources.load(str(QUESTIONS), size=4)] == [
        "weekend/0/0",
        "weekend/1/0",
        "weekend_json/0/0",
        "weekend/0/1",
    ]
    with pytest.raises(DataError, match="has 8 examples, found size 9"):
        sources.load(str(QUESTIONS), size=9)


def test_a_file_that_is_not_there_is_no_hub_dataset():
    assert not sources.known("data/questions.yaml")
    assert not sources.known("data/chats.jsonl")
    with pytest.raises(DataError, match="no question file at"):
        sources.load("data/questions.yaml")
