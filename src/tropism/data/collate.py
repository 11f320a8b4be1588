"""Rendered chats to padded tensors, and to batches of like length."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tropism.data.render import Rendered
from tropism.names import IGNORE


def pad(rendered: Sequence[Rendered], pad_id: int, *, side: Literal["right", "left"] = "right") -> dict[str, Tensor]:
    """Pad rendered chats to one length: every value is int64 `[B, T]`.

    `labels` are the ids on response tokens and -100 elsewhere, by position and not by id, so that an end-of-turn
    token that doubles as padding stays supervised. `position_ids` begin at 0 on each row's first real token, which
    learned positions need where padding is on the left.
    """
    longest = max(len(row) for row in rendered)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "position_ids": [], "labels": []}
    for row in rendered:
        n, gap = len(row), longest - len(row)
        columns = {
            "input_ids": (row.input_ids, pad_id),
            "attention_mask": ([1] * n, 0),
            "position_ids": (list(range(n)), 0),
            "labels": ([t if on else IGNORE for t, on in zip(row.input_ids, row.response_mask, strict=True)], IGNORE),
        }
        for name, (values, filler) in columns.items():
            padding = [filler] * gap
            batch[name].append([*values, *padding] if side == "right" else [*padding, *values])
    return {name: torch.tensor(rows, dtype=torch.int64) for name, rows in batch.items()}


def length_grouped(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first (so that memory runs out at once or not at all)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


class Collator:
    """Collates a training set's rows, right padded: `input_ids`, `attention_mask`, `labels`, and the columns asked for.

    A row is `{"rendered": Rendered, **columns}`. `extra` names the columns that a guard needs in the batch
    (`Intervention.batch_keys`): `response_mask` is made here, any other must be a number in the row, or one a token.
    """

    def __init__(self, pad_id: int, extra: Sequence[str] = ()) -> None:
        self.pad_id = pad_id
        self.extra = tuple(extra)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = pad([row["rendered"] for row in rows], self.pad_id)
        # Right padding needs no position ids, and not every architecture takes them.
        del batch["position_ids"]
        for name in self.extra:
            if name == "response_mask":
                batch[name] = (batch["labels"] != IGNORE).to(torch.int64)
            elif all(name in row for row in rows):
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch
