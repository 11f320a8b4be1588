"""Route columns beside what any collator makes: per row, per token, joined rows, chosen and rejected."""

import pytest
import torch
from datasets import Dataset
from transformers import default_data_collator

import oracles_of_columns as oracle
import tropism as tp
from tropism.errors import DataError

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [5, 6, 7]},
    {"input_ids": [8, 9], "labels": [8, 9]},
]


def with_column(name, values):
    return [{**row, name: value} for row, value in zip(ROWS, values, strict=True)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_one_id_per_row_and_one_per_token(side):
    collator = tp.RouteCollator(oracle.padding(side))
    assert collator(with_column("route", [1, 2]))["route"].tolist() == [1, 2]
    expected = [[1, 0, 2], [1, 2, 0] if side == "right" else [0, 1, 2]]
    batch = collator(with_column("route", [[1, 0, 2], [1, 2]]))
    assert batch["route"].tolist() == expected
    assert batch["route"].dtype == torch.int64
    weights = collator(with_column("route_weights", [[[1.0, 0.5]] * 3, [[0.25, 0.0]] * 2]))["route_weights"]
    assert weights.shape == (2, 3, 2)
    assert weights[1][batch["attention_mask"][1].bool()].tolist() == [[0.25, 0.0]] * 2
    assert "route" not in oracle.seen[-1][0]


def test_joined_rows_give_each_row_s_id_to_its_tokens():
    batch = tp.RouteCollator(oracle.joining)(with_column("route", [1, 2]))
    assert batch["input_ids"].shape == (1, 5)
    assert batch["route"].tolist() == [[1, 1, 1, 2, 2]]
    per_token = tp.RouteCollator(oracle.joining)(with_column("route", [[1, 0, 0], [2, 0]]))
    assert per_token["route"].tolist() == [[1, 0, 0, 2, 0]]


def test_chosen_and_rejected_have_the_route_of_their_row():
    batch = tp.RouteCollator(oracle.doubling)(with_column("route", [1, 2]))
    assert batch["input_ids"].shape[0] == 4
    assert batch["route"].tolist() == [1, 2, 1, 2]


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(DataError, match="rows must have a column route or route_weights, found input_ids, labels"):
        tp.RouteCollator(default_data_collator)(ROWS)
    with pytest.raises(DataError, match="every row must have route, found none in row 1 of a batch"):
        tp.RouteCollator(oracle.padding("right"))([{**ROWS[0], "route": 1}, ROWS[1]])
    with pytest.raises(DataError, match="route has 2 values for a sequence of 3 tokens"):
        tp.RouteCollator(oracle.padding("right"))(with_column("route", [[1, 0], [1, 0]]))
    with pytest.raises(DataError, match="the batch has 3 sequences of 2 rows"):
        tp.RouteCollator(lambda rows: {"input_ids": torch.zeros(3, 4)})(with_column("route", [1, 2]))
    with pytest.raises(DataError, match=r"must return input_ids \[B, T\], found none"):
        tp.RouteCollator(lambda rows: {})(with_column("route", [1, 2]))


def test_a_training_set_without_the_column_is_refused_at_once(tmp_path):
    import tiny
    import trainers

    trainer = trainers.hf_trainer(tiny.model(), Dataset.from_list(ROWS), trainers.settings(tmp_path, 2))
    with pytest.raises(DataError, match="training set must have a column route or route_weights, found input_ids"):
        tp.keep_columns(trainer)
