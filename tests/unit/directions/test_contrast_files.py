"""Contrasts from files: pairs and labelled chats, in every kind of file, with columns of any name."""

import json

import pytest

import row_files
from tropism.data.transforms import SystemPrompt
from tropism.directions.contrast_files import read_contrast, read_pairs
from tropism.errors import DataError

PAIRS = [{"prompt": "a", "positive": "A", "negative": "b"}, {"prompt": "c", "positive": "C", "negative": "d"}]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.zst"])
def test_pairs_of_every_kind_of_file(tmp_path, ending):
    contrast = read_contrast(row_files.write(tmp_path / f"pairs.{ending}", PAIRS))
    assert (contrast.kind, contrast.paired) == ("responses", True)
    assert [chat[-1]["content"] for chat in contrast.positive] == ["A", "C"]
    assert [chat[-1]["content"] for chat in contrast.negative] == ["b", "d"]
    assert [chat[0]["content"] for chat in contrast.positive] == ["a", "c"]


def test_a_preference_set_is_a_contrast_by_its_columns(tmp_path):
    chat = [{"role": "user", "content": "q"}]
    answers = [[*chat, {"role": "assistant", "content": text}] for text in ("good", "bad")]
    columns = {"positive": "rejected", "negative": "chosen"}
    for row in ({"prompt": "q", "chosen": "good", "rejected": "bad"}, {"chosen": answers[0], "rejected": answers[1]}):
        contrast = read_contrast(row_files.write(tmp_path / "pairs.jsonl", [row]), columns)
        assert (contrast.positive[0][-1]["content"], contrast.negative[0][-1]["content"]) == ("bad", "good")


def test_pairs_are_sampled_sliced_and_transformed_together(tmp_path):
    rows = [{"question": f"q {i}", "positive": f"P {i}", "negative": f"n {i}"} for i in range(20)]
    source = str(row_files.write(tmp_path / "pairs.jsonl", rows))
    said = []
    contrast = read_pairs(
        source,
        transform=lambda e: SystemPrompt("Be brief.").apply(e, 0),
        size=6,
        split="train[50%:]",
        seed=3,
        say=said.append,
    )
    assert len(contrast) == 6
    for positive, negative in zip(contrast.positive, contrast.negative, strict=True):
        assert positive[0] == {"role": "system", "content": "Be brief."}
        assert positive[1] == negative[1]
        assert positive[2]["content"].replace("P", "n") == negative[2]["content"]
        assert int(positive[1]["content"].split()[1]) >= 10
    assert not said


def test_labelled_chats(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "A"}], "label": "positive"},
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "b"}], "label": 0},
    ]
    contrast = read_contrast(row_files.write(tmp_path / "a.jsonl", rows))
    assert (len(contrast.positive), len(contrast.negative), contrast.kind) == (1, 1, "labelled")
    renamed = [{"chat": row["messages"], "trait": row["label"]} for row in rows]
    contrast = read_contrast(row_files.write(tmp_path / "b.jsonl", renamed), {"label": "trait"})
    assert contrast.positive[0][-1]["content"] == "A"


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (None, None, "is empty"),
        ({"prompt": "a", "positive": "A", "negative": ""}, None, "row bad.jsonl/1: negative must be a text that is not empty"),
        ({"prompt": "a", "positive": "A"}, None, "line 1: columns maps completion to 'negative', which the row does not have"),
        ({"prompt": 3.5, "positive": "A", "negative": "b"}, None, "line 1: a prompt or response must be a text or a list"),
        ({"prompt": "a", "answer": "A"}, {"positive": "answr"}, "line 1: columns maps completion to 'answr'"),
        ({"messages": [{"role": "user", "content": "u"}], "label": "maybe"}, None, "line 1: .*found label 'maybe'"),
        ([1], None, "line 1: must be a JSON object"),
        (
            {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
             "rejected": [{"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]},
            {"positive": "chosen", "negative": "rejected"}, "row bad.jsonl/1: the two sides answer different prompts",
        ),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_its_row(tmp_path, row, columns, message):
    file = tmp_path / "bad.jsonl"
    file.write_text("" if row is None else json.dumps(row))
    with pytest.raises(DataError, match=message):
        read_contrast(file, columns)
