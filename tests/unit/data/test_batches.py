"""Batches of chats: every chat once, the same logits as alone, on either side of the padding."""

import pytest
import torch

from tropism.data.batches import batches, padding_id
from tropism.data.render import render

CHATS = [[{"role": "user", "content": text}] for text in ("hi", "a much longer question", "short", "x")]


@pytest.mark.parametrize("side", ["right", "left"])
def test_each_chat_has_the_logits_that_it_has_alone(model, tokenizer, side):
    rows = [render(tokenizer, chat) for chat in CHATS]
    seen = []
    for batch in batches(rows, 3, side=side):
        logits = model(**batch.inputs).logits
        for row, place in enumerate(batch.places):
            assert batch.rows[row] is rows[place]
            columns = [batch.column(row, token) for token in range(len(rows[place]))]
            alone = model(input_ids=torch.tensor([rows[place].input_ids])).logits[0]
            torch.testing.assert_close(logits[row, columns], alone, atol=1e-5, rtol=1e-4)
            seen.append(place)
    assert sorted(seen) == [0, 1, 2, 3]


def test_padding_id_is_the_tokenizers_own_then_its_end_of_sequence(tokenizer):
    assert padding_id(tokenizer) == tokenizer.pad_token_id != tokenizer.eos_token_id
    tokenizer.pad_token = None
    assert padding_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert padding_id(tokenizer) == 0
