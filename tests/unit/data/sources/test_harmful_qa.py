"""HarmfulQA's rows: every conversation counted, nothing dropped in silence, no question on two sides."""

import pytest

import row_files
from tropism.data import sources
from tropism.data.sources import harmful_qa as source
from tropism.errors import DataError


def turns(*texts):
    return [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(texts)]


def row(index, blue=None, red=None, question=None):
    return {
        "id": index, "topic": "T", "subtopic": "S", "question": question or f"Question number {index}?",
        "blue_conversations": blue, "red_conversations": red,
    }  # fmt: skip


def read(rows, split, subset=None):
    found = source.examples_of_rows([(f"row {i}", r) for i, r in enumerate(rows)], split, subset)
    return found.examples, found.counts


MANY = [
    row(
        i,
        {str(k): turns(f"q{i}", f"no {i} {k}") for k in range(3)} | {"3": None},
        {"0": turns(f"q{i}", f"yes {i}")},
    )
    for i in range(400)
]


def test_all_conversations_of_a_question_are_used_and_null_keys_are_none():
    blue = {"0": turns("a", "b"), "1": None, "3": turns("c", "d", "e", "f")}
    index = next(i for i in range(100) if source.split_of(f"Question number {i}?") == "refusal")
    examples, counts = read([row(index, blue, None)], "refusal")
    assert [example.id for example in examples] == [
        f"harmful_qa/{index}/blue/0",
        f"harmful_qa/{index}/blue/3",
    ]
    assert (counts.blue, counts.red, counts.questions) == (2, 0, 1)


def test_turn_0_is_the_human_turn_and_the_question_is_not_put_in_front():
    examples, _ = read(MANY, "attack")
    example = examples[0]
    assert [m["role"] for m in example.chat] == ["user", "assistant"]
    assert example.chat[0]["content"].startswith("q")
    assert example.labels["question"].startswith("Question number")
    assert example.labels["kind"] == "red"


def test_the_splits_are_70_30_after_a_tenth_is_held_out_and_share_no_question():
    sides = {split: read(MANY, split)[0] for split in ("refusal", "attack", "test", "test_refusals")}
    questions = {split: {e.labels["question"] for e in examples} for split, examples in sides.items()}
    assert questions.pop("test_refusals") <= questions["test"]
    assert {e.labels["kind"] for e in sides["test_refusals"]} == {"blue"}
    assert sum(len(q) for q in questions.values()) == 400
    assert len(questions["test"]) == pytest.approx(40, abs=15)
    assert len(questions["attack"]) / (len(questions["attack"]) + len(questions["refusal"])) == pytest.approx(
        0.3, abs=0.07
    )
    for one, other in (("refusal", "attack"), ("refusal", "test"), ("attack", "test")):
        assert not questions[one] & questions[other]
        source.check_disjoint(sides[one], sides[other], (one, other))
    assert len(sides["refusal"]) == 3 * len(questions["refusal"])  # every blue conversation, not the first
    assert all(example.response is None for example in sides["test"])


def test_a_repeated_question_stays_on_one_side_whatever_its_case_and_spacing():
    assert source.split_of("How do  I\tdo X?") == source.split_of("how do i do x")
    rows = [row(1, question="Same  thing?"), row(2, question="same thing")]
    held = [read(rows, split)[0] for split in ("refusal", "attack", "test")]
    assert sum(len(examples) for examples in held) <= 1
    assert read(rows, "test")[1].questions == 1


def test_overlap_is_refused():
    one, _ = read(MANY, "refusal")
    with pytest.raises(
        DataError, match=r"refusal and attack must share no question, found 'Question number \d+\?' in both"
    ):
        source.check_disjoint(one, one[:1], ("refusal", "attack"))


def test_counts_are_said_and_what_is_left_out_is_named():
    rows = [
        row(0, {"0": turns("a", "b", "c")}, {"0": turns("only a question")}),
        row(1, {"0": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]}, {"0": turns("a", " ")}),
    ]
    counts = read(rows, "test")[1]
    assert (counts.blue, counts.red, counts.cut) == (1, 0, 3)
    assert str(counts) == (
        "HarmfulQA: 2 rows, 2 questions, 1 blue and 0 red conversations (the card says 9,536 and 7,356); 3 "
        "cut before a "
        "last human turn; left out: 1 whose turns do not alternate from the human on, 1 with an empty turn, "
        "1 without an "
        "answer"
    )


def test_share_of_blue_conversations_that_refuse():
    examples, _ = read(MANY, "refusal")
    assert source.refusal_share(examples, lambda text: text.startswith("no")) == 1.0
    assert 0 < source.refusal_share(examples, lambda text: text.endswith("1")) < 1
    with pytest.raises(DataError, match="at least one conversation"):
        source.refusal_share([], bool)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"question": None}, "row 0: a HarmfulQA row has a question, found None"),
        (row(0, ["x"]), "blue_conversations must map '0'..'4' to turns, found list"),
        (row(0, {"5": turns("a", "b")}), "has the key '5'; available: 0, 1, 2, 3, 4"),
        (row(0, {"0": "text"}), "blue conversation 0 must be a list of turns, found str"),
        (row(0, {"0": [{"from": "system", "value": "x"}]}), "turn 0 must be {'from': 'human' or 'gpt'"),
    ],
)
def test_rows_of_another_form_are_refused(bad, message):
    with pytest.raises(DataError, match=message.replace("{", r"\{")):
        read([bad], "refusal")


@pytest.fixture
def file(tmp_path):
    return row_files.write(tmp_path / "rows.jsonl", MANY)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.json.gz", "rows.parquet"])
def test_rows_are_read_from_a_local_file(tmp_path, name):
    file = row_files.write(tmp_path / name, MANY)
    said = []
    examples = sources.load("harmful_qa", split="attack", path=str(file), say=said.append)
    assert examples == read(MANY, "attack")[0]
    assert "400 rows, 400 questions, 1200 blue and 400 red conversations" in said[0]


def test_the_hub_s_own_split_holds_what_subset_says(file):
    blue = sources.load("harmful_qa", split="train", subset="blue", path=str(file))
    assert len(blue) == 1200
    assert len(sources.load("harmful_qa", split="train", subset="red", path=str(file))) == 400
    questions = sources.load("harmful_qa", split="train", subset="questions", path=str(file))
    assert [e.labels["question"] for e in questions] == [row["question"] for row in MANY]
    assert {e.labels["kind"] for e in sources.load("harmful_qa", split="attack", subset="blue", path=str(file))} == {
        "blue"
    }
    with pytest.raises(DataError, match="the split 'train' is of all questions .* subset: blue"):
        sources.load("harmful_qa", path=str(file))
    with pytest.raises(DataError, match="has the subsets blue, red, questions, found 'green'"):
        sources.load("harmful_qa", split="train", subset="green", path=str(file))


@pytest.mark.parametrize(
    ("split", "subset"), [("train", "blue"), ("train", "red"), ("refusal", None), ("attack", None)]
)
def test_a_slice_is_of_questions_and_keeps_their_conversations_together(file, split, subset):
    def load(part):
        return sources.load("harmful_qa", split=f"{split}[{part}]", subset=subset, path=str(file))

    first, rest, whole = load(":40%"), load("40%:"), load(":")
    questions = [list(dict.fromkeys(e.labels["question"] for e in part)) for part in (first, rest, whole)]
    assert first + rest == whole
    assert questions[0] + questions[1] == questions[2]
    assert len(questions[0]) == round(0.4 * len(questions[2]))


def test_the_origin_s_splits_of_rows_can_be_said(file):
    """`train[:40%]`, `train[40%:90%]` and `train[90%:]` of the refusal study take the rows that `datasets` takes."""
    for part, rows in ((":40%", MANY[:160]), ("40%:90%", MANY[160:360]), ("90%:", MANY[360:])):
        asked = sources.load("harmful_qa", split=f"train[{part}]", subset="questions", path=str(file))
        assert [e.labels["question"] for e in asked] == [row["question"] for row in rows]


def test_a_missing_file_and_an_unknown_split_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        sources.load("harmful_qa", split="test", path=str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="has the splits refusal, attack, test, test_refusals, train, found 'dev'"):
        source.harmful_qa("dev")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        source.harmful_qa(path=str(tmp_path / "bad.json"))
