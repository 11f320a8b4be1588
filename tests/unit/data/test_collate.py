"""Padding by position, batches by length, and the columns that guards ask for."""

import torch

from tropism.data.collate import IGNORE, Collator, length_grouped, pad
from tropism.data.render import Rendered, render

ROWS = [Rendered([5, 6, 7, 2], [False, False, True, True], ""), Rendered([8, 2], [False, True], "")]


def test_labels_are_ignored_by_position_so_that_an_end_of_turn_that_is_padding_stays_supervised():
    batch = pad(ROWS, pad_id=2)
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 7, 2], [IGNORE, 2, IGNORE, IGNORE]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_left_padding_counts_positions_from_the_first_real_token():
    batch = pad(ROWS, pad_id=0, side="left")
    assert batch["input_ids"].tolist()[1] == [0, 0, 8, 2]
    assert batch["position_ids"].tolist()[1] == [0, 0, 0, 1]


def test_every_index_is_in_one_batch_and_lengths_never_rise():
    lengths = [3, 9, 1, 9, 4]
    batches = list(length_grouped(lengths, 2))
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3, 4]
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)


def test_the_collator_adds_the_columns_that_were_asked_for_and_no_other():
    rows = [{"rendered": row, "route": route, "other": 1} for row, route in zip(ROWS, (0, 2), strict=True)]
    batch = Collator(0, ["response_mask", "route"])(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "response_mask", "route"}
    assert batch["route"].tolist() == [0, 2]
    assert torch.equal(batch["response_mask"].bool(), batch["labels"] != IGNORE)


def test_padding_changes_no_logits(model, tokenizer):
    chats = [[{"role": "user", "content": text}] for text in ("hi", "a much longer question")]
    rows = [render(tokenizer, chat) for chat in chats]
    alone = pad(rows[:1], 0)
    for side in ("left", "right"):
        batch = pad(rows, 0, side=side)
        batch.pop("labels")
        logits = model(**batch).logits[0]
        kept = logits[batch["attention_mask"][0].bool()]
        alone.pop("labels", None)
        torch.testing.assert_close(kept, model(**alone).logits[0], atol=1e-5, rtol=1e-4)
