"""The loop from chats to a model: grouped by length, padded, moved to the model's device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tropism.data.collate import length_grouped, pad
from tropism.data.render import Rendered
from tropism.errors import DataError
from tropism.site import base_model


@dataclass(frozen=True, eq=False)
class Batch:
    """Chats of like length, padded to one; every tensor is int64 `[B, T]`."""

    places: list[int]
    """Where each row stands in the sequence that was batched."""
    rows: list[Rendered]
    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    """The ids on response tokens, -100 elsewhere."""
    side: Literal["right", "left"] = "right"

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model is called with for one forward pass.

        Padding on the left moves every token, so positions are given there. On the right nothing moves, and not every
        architecture takes them.
        """
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.side == "left":
            inputs["position_ids"] = self.position_ids
        return inputs

    def column(self, row: int, token: int) -> int:
        """The column of a row's token: the token's own index, past the padding where that is on the left."""
        gap = self.input_ids.shape[1] - len(self.rows[row]) if self.side == "left" else 0
        return gap + token


def batches(
    rendered: Sequence[Rendered],
    batch_size: int,
    *,
    pad_id: int = 0,
    side: Literal["right", "left"] = "right",
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Batches of like length, longest first, each of at most `batch_size` rows.

    `pad_id` fills what the attention mask hides, so only generation has to name the right one.

    >>> short, long = Rendered([1, 2], [False, True], "ab"), Rendered([1, 2, 3], [False, True, True], "abc")
    >>> [batch.places for batch in batches([short, long, short], 2)]
    [[1, 0], [2]]
    """
    for places in length_grouped([len(row) for row in rendered], batch_size):
        rows = [rendered[place] for place in places]
        padded = {name: column.to(device) for name, column in pad(rows, pad_id, side=side).items()}
        yield Batch(places, rows, **padded, side=side)


def embeddings(model: Any) -> int:
    """Of how many tokens a model has an embedding."""
    return int(base_model(model).get_input_embeddings().weight.shape[0])


def check_embedded(rows: int, rendered: Sequence[Rendered], tokenizer: Any = None) -> None:
    """Raise `DataError` where a chat has a token that a model of `rows` embeddings has none of: its tokenizer's alone."""
    for row in rendered:
        if row.input_ids and (last := max(row.input_ids)) >= rows:
            token = last if tokenizer is None else repr(tokenizer.convert_ids_to_tokens(last))
            raise DataError(
                f"a chat holds the token {token}, number {last}, and the model has embeddings of {rows} tokens; take it out, or "
                f"save the model again after model.resize_token_embeddings({last + 1})"
            )


def padding_id(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's own, else its end of sequence, else 0; the attention mask hides it."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
