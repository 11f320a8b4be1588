"""The figure of the refusal study is a pure function of its table, and refuses one that says nothing."""

import pandas as pd
import pytest

from tropism.errors import RunFolderError
from tropism.studies.refusal import figures as refusal

NAN = float("nan")
TABLE = pd.DataFrame(
    [
        ("refusal rate", "base", 0.9, 0.8, 1.0),
        ("refusal rate", "one_sided", 0.1, NAN, NAN),
        ("likelihood", "base", 0.7, 0.6, 0.8),
        ("likelihood", "one_sided", 0.2, 0.1, 0.3),
    ],
    columns=refusal.COLUMNS,
)


def test_both_panels_are_drawn_and_the_same_bytes_every_time(tmp_path, every_format):
    svg = refusal.draw(TABLE, "base", tmp_path, "kept")
    assert all(f">{words}<" in svg for words in ("before the attack", "one sided", "refusal rate", "likelihood"))
    assert svg.count("stroke-width: 1.2") == 4
    assert {file.name for file in tmp_path.iterdir()} == {"kept.svg", "kept.png", "kept.pdf"}
    assert refusal.draw(TABLE, "base", tmp_path / "again", "kept") == svg


def test_one_panel_where_there_is_one_measure(tmp_path):
    assert "likelihood" not in refusal.draw(TABLE[TABLE["measure"] == "refusal rate"], "base", tmp_path, "kept")


@pytest.mark.parametrize("table", [TABLE.iloc[:0], TABLE.drop(columns="low")])
def test_a_table_that_says_nothing_is_refused(table, tmp_path):
    with pytest.raises(RunFolderError, match="the table must have rows and the columns measure, condition"):
        refusal.draw(table, "base", tmp_path, "kept")
    assert not list(tmp_path.iterdir())
