"""The registry: what ships with the package is sound, an option means the same everywhere, a bad file is refused."""

import json
import logging
import re
import tracemalloc
from pathlib import Path

import datasets
import pytest

import sample_data
from tropism.data import sources
from tropism.data.sources import hub
from tropism.data.sources import word_problems as module
from tropism.data.sources.source import OPTIONS
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
    monkeypatch.setattr(module, "TEMPLATES", [t for t in TEMPLATES if t.__name__ == "_speed"])
    with pytest.raises(DataError, match="word_problems has about .* distinct test problems, found size 900"):
        word_problems(900, split="test")


def test_everyday_questions_are_many_distinct_and_split():
    test, dev = sources.load("everyday_questions"), sources.load("everyday_questions", split="dev")
    assert len(test) >= 120
    assert not {e.chat[0]["content"] for e in test} & {e.chat[0]["content"] for e in dev}
    assert len({e.chat[0]["content"] for e in test}) == len(test)


def test_gsm8k_rows_carry_their_number():
    rows = sources.load("gsm8k", split="test", path=str(sample_data.path("gsm8k/test.jsonl")))
    assert len(rows) == 1319
    assert rows[0].target == "18"
    assert all(re.fullmatch(r"-?\d+", row.target) for row in rows)
    assert rows[5].id == "gsm8k/test/5"


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((CHAT, "{nope"), r"bad.jsonl line 2: not JSON"),
        ((CHAT, [1]), r"bad.jsonl line 2: must be a JSON object, found list"),
        (
            (CHAT, {"messages": [{"role": "user"}]}),
            r"bad.jsonl line 2: message 0 must have a text as content, found NoneType",
        ),
        (
            (CHAT, {"messages": "hello"}),
            r"bad.jsonl line 2: a chat must be a list of messages, or its JSON, found the text",
        ),
        (
            (CHAT, {"body": "x"}),
            r"bad.jsonl line 2: a row needs a chat \('messages'\), a prompt with its response, or 'text'; found the keys body",
        ),
        (({**CHAT, "id": "a"}, {**CHAT, "id": "a"}), r"the id 'a' occurs twice"),
        ((), r"is empty; it needs at least one chat"),
    ],
)
def test_a_bad_line_is_named(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        sources.load(str(write(tmp_path / "bad.jsonl", *lines)))


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
    for name in (
        "data/questions.yaml",
        "data/chats.jsonl",
        "chats.csv",
        "./chats",
        "a/b/c",
        "/chats",
        "~/chats",
        "notes.txt",
    ):
        with pytest.raises(DataError, match=f"no such file.*{re.escape(name)}"):
            sources.load(name)


def test_a_file_of_an_unknown_kind_is_named(tmp_path):
    file = tmp_path / "chats.txt"
    file.write_text("hello")
    with pytest.raises(DataError, match=r"is a file of an unknown kind; a file of rows ends in .jsonl"):
        sources.load(str(file))


GIVEN = {"subset": "blue", "columns": {"prompt": "q"}, "path": __file__, "size": 3, "seed": 1}


def every_source(tmp_path):
    write(tmp_path / "train.jsonl", *[CHAT] * 9)
    names = ("word_problems", "everyday_questions", "gsm8k", "harmful_qa", "declined_topic", "owner/name")
    return [*names, str(tmp_path / "train.jsonl"), str(tmp_path), str(QUESTIONS)]


def test_an_option_that_a_source_does_not_take_is_refused_by_every_source(tmp_path):
    for source in every_source(tmp_path):
        entry = sources.source_of(source)
        assert set(entry.takes) <= set(OPTIONS)
        for option, value in GIVEN.items():
            if option in entry.takes:
                continue
            with pytest.raises(DataError) as caught:
                sources.check(source, **{option: value})
            for part in (repr(source), repr(option), repr(value), ", ".join(entry.takes)):
                assert part in str(caught.value)


def test_an_unknown_split_is_refused_by_every_source_with_named_splits():
    for name, entry in sources.REGISTERED.items():
        with pytest.raises(DataError, match=f"source '{name}' has no split 'dev2'; it has {entry.splits[0]}"):
            sources.check(name, split="dev2")
        with pytest.raises(DataError, match="split must be a name"):
            sources.check(name, split="[:3]")


@pytest.mark.parametrize("split", ["train", "test", "dev", "attack"])
@pytest.mark.parametrize("name", ["word_problems", "everyday_questions", "declined_topic"])
def test_a_slice_means_the_same_on_every_registered_source(name, split):
    if split not in sources.REGISTERED[name].splits:
        return
    parts = [sources.load(name, split=f"{split}[{part}]") for part in (":70%", "70%:", "0%:")]
    assert [e.id for e in parts[0] + parts[1]] == [e.id for e in parts[2]]
    assert len(parts[0]) == round(0.7 * len(parts[2]))
    assert sources.load(name, split=f"{split}[3:7]") == parts[2][3:7]
    some = sources.load(name, split=f"{split}[70%:]", size=5)
    assert len(some) == 5
    assert {e.id for e in some} < {e.id for e in parts[1]}


def test_a_slice_of_the_questions_of_a_file(tmp_path):
    whole = sources.load(str(QUESTIONS))
    assert sources.load(str(QUESTIONS), split="train[:50%]") == whole[:4]
    assert sources.load(str(QUESTIONS), split="train[50%:]", size=2) == whole[4:6]
    with pytest.raises(DataError, match="is the split 'train' and has no split 'test'"):
        sources.load(str(QUESTIONS), split="test")


@pytest.fixture
def on_hub(monkeypatch):
    asked = []

    def rows(*given, instead=None):
        asked.append(given)
        return datasets.Dataset.from_list([{"question": f"q {i}", "answer": f"a {i}\n#### {i}"} for i in range(10)])

    monkeypatch.setattr(hub, "hub_rows", rows)
    monkeypatch.delenv("TROPISM_DATA", raising=False)
    return asked


def test_a_hub_dataset_is_sliced_like_any_other(on_hub):
    whole = sources.load("owner/name", subset="main", split="dev")
    assert [e.id for e in whole] == [f"owner/name/dev/{i}" for i in range(10)]
    assert sources.load("owner/name", subset="main", split="dev[70%:]") == whole[7:]
    assert sources.load("owner/name", split="dev", size=3, columns={"prompt": "answer", "completion": "question"})
    assert on_hub == [("owner/name", "main", "dev"), ("owner/name", "main", "dev"), ("owner/name", None, "dev")]
    assert [e.target for e in sources.load("gsm8k", split="test[:2]")] == ["0", "1"]


def test_columns_that_are_not_used_are_said_once(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", {**CHAT, "score": 3, "tag": "x"}, {**CHAT, "score": 4, "extra": None})
    with caplog.at_level(logging.WARNING):
        sources.load(str(path))
        sources.load(str(path))
    assert caplog.text.count("columns that are not used: score, tag") == 1
    said = []
    sources.load(str(path), say=said.append)
    assert said == [f"{path}: columns that are not used: score, tag"]


def test_bad_rows_are_skipped_and_counted_where_that_is_asked_for(tmp_path):
    good = [{"prompt": f"q {i}", "completion": "a"} for i in range(6)]
    path = str(
        write(tmp_path / "a.jsonl", *good[:3], "{nope", {"messages": [{"role": "x", "content": "y"}]}, *good[3:])
    )
    with pytest.raises(DataError, match="line 4: not JSON"):
        sources.load(path)
    said = []
    examples = sources.load(path, on_bad_row="skip", say=said.append)
    assert [e.id for e in examples] == [f"a.jsonl/{i}" for i in (1, 2, 3, 6, 7, 8)]
    assert re.fullmatch(r".*: 2 rows that cannot be read are skipped, the first: .*a.jsonl line 4: not JSON.*", said[0])
    assert len(sources.load(path, on_bad_row="skip", size=6)) == 6
    with pytest.raises(DataError, match="has 6 examples, found size 7"):
        sources.load(path, on_bad_row="skip", size=7)


def test_a_column_that_no_row_has_is_refused(tmp_path):
    path = str(write(tmp_path / "a.jsonl", {"prompt": "q", "completion": "a"}))
    with pytest.raises(DataError, match="columns maps system to 'sys', and no row has that column"):
        sources.load(path, columns={"system": "sys"})
    with pytest.raises(DataError, match="columns: 'promt' is nothing that a row is read for"):
        sources.check(path, columns={"promt": "q"})


def test_rows_are_read_one_at_a_time(tmp_path):
    def peak(count):
        path = write(tmp_path / f"{count}.jsonl", *[{"prompt": f"{i}", "completion": "x" * 200} for i in range(count)])
        next(sources.iterate(str(path)))
        tracemalloc.start()
        assert sum(1 for _ in sources.iterate(str(path))) == count
        assert len(sources.load(str(path), size=10)) == 10
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # Only ids are held, about 200 bytes each with their place in the set, and not the 700 bytes of an example.
    assert peak(20_000) - peak(2_000) < 18_000 * 250
