"""Rendered chats to padded tensors, to one row without padding, and to batches of like length."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tropism.data.render import Rendered
from tropism.errors import DataError
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


def join(rendered: Sequence[Rendered]) -> dict[str, Tensor]:
    """Lay rendered chats end to end in one row: every value is int64 `[1, T]`, `T` the sum of their lengths.

    `position_ids` begin at 0 with each chat. There is no attention mask: where a model is given none, transformers tells the
    chats of a row apart by their positions. A chat's first token has no label, since nothing before it in its chat predicts it;
    in a padded batch the shift of labels leaves it out.

    >>> joined = join([Rendered([5, 6], [False, True], "ab"), Rendered([7, 8], [True, True], "cd")])
    >>> joined["labels"].tolist(), joined["position_ids"].tolist()
    ([[-100, 6, -100, 8]], [[0, 1, 0, 1]])
    """
    batch: dict[str, list[int]] = {"input_ids": [], "position_ids": [], "labels": []}
    for row in rendered:
        learned = [
            t if on and i > 0 else IGNORE
            for i, (t, on) in enumerate(zip(row.input_ids, row.response_mask, strict=True))
        ]
        batch["input_ids"] += row.input_ids
        batch["position_ids"] += range(len(row))
        batch["labels"] += learned
    return {name: torch.tensor([values], dtype=torch.int64) for name, values in batch.items()}


def length_grouped(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first (so that memory runs out at once or not at all)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


class Collator:
    """Collates a training set's rows: `input_ids`, `labels`, and the columns asked for, each `[B, T]`, right padded.

    A row is `{"rendered": Rendered, **columns}`. `extra` names the columns that a guard needs in the batch
    (`Intervention.batch_keys`): `response_mask` is made here, any other must be a number in the row, or one a token.
    Padded batches have an `attention_mask`. With `packing` the rows lie in one (`join`), with `position_ids`, and every column
    has an entry a token, that of its row. Raises `DataError` for a column that has neither one entry a row nor one a token.
    """

    def __init__(self, pad_id: int, extra: Sequence[str] = (), *, packing: bool = False) -> None:
        self.pad_id = pad_id
        self.extra = tuple(extra)
        self.packing = packing

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rendered = [row["rendered"] for row in rows]
        batch = join(rendered) if self.packing else pad(rendered, self.pad_id)
        if not self.packing:
            # Right padding needs no position ids, and not every architecture takes them.
            del batch["position_ids"]
        for name in self.extra:
            if name == "response_mask":
                batch[name] = _response_mask(rendered) if self.packing else (batch["labels"] != IGNORE).to(torch.int64)
            elif all(name in row for row in rows):
                values = [row[name] for row in rows]
                batch[name] = _by_token(name, values, rendered) if self.packing else torch.tensor(values)
        return batch


def _response_mask(rendered: Sequence[Rendered]) -> Tensor:
    """Which tokens of joined chats are a response, int64 `[1, T]`; a chat's first token may be one, and has no label."""
    return torch.tensor([[int(on) for row in rendered for on in row.response_mask]], dtype=torch.int64)


def _by_token(name: str, values: Sequence[Any], rendered: Sequence[Rendered]) -> Tensor:
    """A column of joined chats, `[1, T]` (`[1, T, …]` where a token has several numbers)."""
    parts = []
    for value, row in zip(values, rendered, strict=True):
        given = torch.as_tensor(value)
        if given.dim() == 0:
            given = given.expand(len(row))
        if len(given) != len(row):
            raise DataError(
                f"column {name} must have one number a chat or one a token, found {len(given)} for {len(row)} tokens"
            )
        parts.append(given)
    return torch.cat(parts).unsqueeze(0)
