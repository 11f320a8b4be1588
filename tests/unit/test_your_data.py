"""The page "Your data" is true: its rows are read as it says, its tables are the registry's, its refusals are what is said."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tropism.data import sources
from tropism.data.sources.formats import COMPRESSED, FORMATS
from tropism.data.sources.rows import FIELDS, example_of_row
from tropism.errors import DataError
from tropism.experiments import prepare
from tropism.experiments.file.spec import DataSpec

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "your_data.md").read_text(encoding="utf-8")
BLOCK = re.compile(r'^```\w+ title="(?P<title>[^"]+)"\n(?P<text>.*?)^```', re.M | re.S)
BLOCKS = [(found["title"], found["text"]) for found in BLOCK.finditer(PAGE)]
EXAMPLES = [(BLOCKS[i], BLOCKS[i + 1], BLOCKS[i + 2]) for i in range(0, len(BLOCKS), 3)]


def table(heading):
    """The cells of the first table below a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def test_every_example_has_rows_a_set_and_a_first_chat():
    assert len(EXAMPLES) >= 8
    for rows, options, first in EXAMPLES:
        assert (options[0], first[0]) == ("set", "first")
        assert rows[0] in options[1]
        assert len(rows[1].splitlines()) == 3


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example[0][0])
def test_the_rows_of_an_example_are_read_as_it_says(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (name, rows), (_, options), (_, first) = example
    Path(name).write_text(rows, encoding="utf-8")
    examples = prepare.load_data(DataSpec.model_validate(yaml.safe_load(options)), 0)
    assert len(examples) >= 2
    shown = [f"{message['role']}: {message['content']}" for message in examples[0].chat]
    shown = shown or [f"text: {examples[0].text}"]
    assert "\n".join(shown) == first.rstrip("\n")


def test_the_table_of_sources_is_the_registry():
    listed = {name.strip("`"): (takes, splits) for name, takes, splits in table("Sources that come with Tropism")}
    assert listed == {name: (", ".join(s.takes), ", ".join(s.splits)) for name, s in sources.REGISTERED.items()}


def test_the_table_of_files_has_every_ending():
    text = " ".join(row[0] for row in table("What a file may be"))
    for ending in (*COMPRESSED, *(ending for one in FORMATS for ending in one.endings)):
        assert f"`{ending}`" in text


def test_every_field_that_columns_take_is_named():
    section = PAGE.split("### Columns with other names\n")[1].split("###")[0]
    assert all(f"`{name}`" in section for name in FIELDS)


@pytest.mark.parametrize("row", table("What is refused"), ids=lambda row: row[0])
def test_what_the_page_says_is_refused_is_refused_so(row):
    with pytest.raises(DataError, match=re.escape(row[1])):
        example_of_row(json.loads(row[0].strip("`")), "line 1", "x")
