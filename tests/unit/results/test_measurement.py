"""A measurement keeps its types on the way to disk and back, and gives `results.csv` the strings it always had."""

import json
import math

import pandas as pd
import pytest

from tropism.errors import RunFolderError
from tropism.results.measurement import (
    RESULT_COLUMNS,
    TYPED_COLUMNS,
    Measurement,
    read_measurements,
    results_table,
    to_line,
    typed_table,
)

ROWS = [
    Measurement("held_out", "accuracy", 0.25, 8, 1, per_response=True, bounds=(0.0, 1.0)),
    Measurement("held_out", "loss", 1.5, 8, bounds=(0.0, math.inf)),
    Measurement("held_out", "trait_at_scale", 0.5, 8, at=0.25, bounds=(0.0, 1.0)),
    Measurement("held_out", "relearned_trait_4_at", 0.5, 8, at=16.0, mode="forget_ablated"),
]


def test_a_measurement_survives_the_disk(tmp_path):
    file = tmp_path / "measurements.jsonl"
    file.write_text("".join(map(to_line, ROWS)))
    assert read_measurements(file) == ROWS
    for line in file.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("at", "name"),
    [(0.0, "m_0"), (0.5, "m_0.5"), (1.0, "m_1"), (64.0, "m_64"), (1e6, "m_1e+06"), (None, "m")],
)
def test_the_place_on_a_curve_ends_the_metrics_name(at, name):
    assert Measurement("x", "m", 0.0, 1, at=at).name == name


def test_a_folder_from_before_has_its_numbers_taken_out_of_the_names(tmp_path):
    older = [
        {"eval_set": "x", "metric": name, "value": 0.5, "n": 4, "unscored": 0, "mode": "full"}
        for name in ("trait_at_scale_0.5", "relearned_benign_16_at_8", "accuracy_at_3", "trait_from_bos")
    ]
    file = tmp_path / "measurements.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in older))
    found = read_measurements(file)
    assert [(one.metric, one.at) for one in found] == [
        ("trait_at_scale", 0.5),
        ("relearned_benign_16_at", 8.0),
        ("accuracy_at_3", None),
        ("trait_from_bos", None),
    ]
    assert [one.name for one in found] == [row["metric"] for row in older]
    assert {one.per_response for one in found} == {None}


def test_the_csv_has_nine_columns_and_the_typed_table_the_rest():
    typed = typed_table([("e", "c", 0, ROWS[0]), ("e", "base", None, ROWS[2])])
    assert tuple(typed.columns) == TYPED_COLUMNS
    assert typed["at"].tolist()[1] == 0.25
    assert typed["metric"].tolist() == ["accuracy", "trait_at_scale"]
    table = results_table(typed)
    assert tuple(table.columns) == RESULT_COLUMNS
    assert table.to_csv(index=False).splitlines()[1:] == [
        "e,c,0,full,held_out,accuracy,0.25,8,1",
        "e,base,,full,held_out,trait_at_scale_0.25,0.5,8,0",
    ]


def test_an_experiment_without_runs_has_a_header():
    assert results_table(typed_table([])).to_csv(index=False) == ",".join(RESULT_COLUMNS) + "\n"
    assert isinstance(typed_table([]), pd.DataFrame)


@pytest.mark.parametrize("line", ["{", "[]", '{"metric": "m"}', '{"eval_set": "x", "metric": "m", "value": 1, "k": 2}'])
def test_a_damaged_line_is_named(tmp_path, line):
    file = tmp_path / "measurements.jsonl"
    file.write_text(to_line(ROWS[0]) + line + "\n")
    with pytest.raises(RunFolderError, match=r"measurements.jsonl:2: not a measurement"):
        read_measurements(file)
