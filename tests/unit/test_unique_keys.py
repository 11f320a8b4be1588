"""A key that is given twice is an error wherever a person writes JSON or YAML, and names the file and the line."""

import json

import pytest
import yaml

from tropism.data.sources.formats import read_objects
from tropism.data.sources.messages import parsed
from tropism.data.sources.questions import read_question_rows
from tropism.errors import DataError, SpecError
from tropism.evals.judges.presets import prompt_of
from tropism.forecasting.trait import parse
from tropism.unique_keys import KeyTwice, from_json, from_yaml

ROW = '{"prompt": "a", "response": "b", "response": "c"}'
NESTED = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "content": "c"}]}'


def test_what_is_said_once_is_read_as_the_formats_own_readers_do():
    text = json.dumps({"a": [{"b": 1, "c": {"b": 2}}], "b": None})
    assert from_json(text) == json.loads(text)
    written = "base: &b {x: 1, y: 2}\nover:\n  <<: *b\n  x: 3\n1: list\n"
    assert from_yaml(written) == yaml.safe_load(written) == {
        "base": {"x": 1, "y": 2}, "over": {"x": 3, "y": 2}, 1: "list",
    }  # fmt: skip


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'])
def test_a_key_twice_is_refused(text):
    for read in (from_json, from_yaml):
        with pytest.raises(KeyTwice, match="the key 'a' is given twice"):
            read(text)


@pytest.mark.parametrize("row", [ROW, NESTED])
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_row_names_the_key_and_its_place(tmp_path, row, ending):
    file = tmp_path / f"rows.{ending}"
    good = '{"prompt": "a", "response": "b"}' if row is ROW else '{"messages": [{"role": "user", "content": "a"}]}'
    file.write_text(f"{good}\n{row}\n" if ending == "jsonl" else f"[{good},\n{row}]", encoding="utf-8")
    with pytest.raises(DataError, match=rf"rows.{ending} line 2: .*the key '(response|content)' is given twice"):
        list(read_objects(file))


def test_a_chat_that_is_written_in_a_cell():
    with pytest.raises(DataError, match="row 3: the key 'role' is given twice"):
        parsed('[{"role": "user", "role": "assistant", "content": "a"}]', "row 3")


def test_files_of_questions_judges_and_traits(tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text("- id: a\n  id: b\n  paraphrases: [x]\n", encoding="utf-8")
    with pytest.raises(DataError, match="file.yaml: the key 'id' is given twice"):
        read_question_rows(file)
    file.write_text("judge_prompts: {aligned: x, aligned: y}\n", encoding="utf-8")
    with pytest.raises(SpecError, match="file.yaml: the key 'aligned' is given twice"):
        prompt_of(f"{file}#aligned")
    with pytest.raises(SpecError, match="mine: the key 'name' is given twice"):
        parse("name: a\nname: b\n", "mine")
