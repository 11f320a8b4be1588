"""Batches that several processes share: whole in every process, and what fills them up teaches nothing."""

import pytest

import tiny
from tropism.data.collate import Collator
from tropism.data.render import render
from tropism.data.sources.word_problems import word_problems
from tropism.names import IGNORE
from tropism.training.options import TrainOptions
from tropism.training.shared_batches import Filled, Rows, WholeBatches


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_order_is_filled_up_to_whole_batches(size):
    order = [3, 1, 4, 0, 2, 5, 6]
    filled = list(WholeBatches(order, size))
    assert filled[:7] == order
    assert filled[7:] == [Filled(6)] * (len(filled) - 7)
    assert len(filled) == len(WholeBatches(order, size)) == -(-7 // size) * size


def test_what_fills_up_has_the_example_and_learns_nothing_of_it():
    tokenizer = tiny.tokenizer()
    rows = Rows([{"rendered": render(tokenizer, e.chat), "route": i} for i, e in enumerate(word_problems(3))])
    batch = Collator(0, ["route"])([rows[1], rows[Filled(1)]])
    assert batch["route"].tolist() == [1, 1]
    assert (batch["input_ids"][0] == batch["input_ids"][1]).all()
    assert (batch["labels"][0] != IGNORE).any()
    assert (batch["labels"][1] == IGNORE).all()
    assert len(list(rows)) == 3


def test_every_attempt_of_an_automatic_batch_can_be_shared():
    attempts = TrainOptions(batch_size="auto", processes=4).attempts()
    assert [(one.first_batch, one.accumulation) for one in attempts] == [(8, 1), (4, 2)]
    with pytest.raises(ValueError, match="3 processes must share a batch of 8 evenly; set batch_size to a multiple"):
        TrainOptions(batch_size="auto", processes=3)
    with pytest.raises(ValueError, match="parallel: fsdp2 does nothing in one process; set processes, or drop it"):
        TrainOptions(parallel="fsdp2")
    with pytest.raises(ValueError, match="parallel: fsdp2 takes torch's own optimizers, .*found 'adafactor'"):
        TrainOptions(processes=2, parallel="fsdp2", optimizer="adafactor")
    with pytest.raises(
        ValueError, match="save_steps is refused with parallel: fsdp2: transformers writes no checkpoint"
    ):
        TrainOptions(processes=2, parallel="fsdp2", save_steps=5)
