"""Route columns through other people's trainers, whose collators keep the columns that they know."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from tropism.errors import DataError

COLUMNS = ("route", "route_weights")
"""The columns of a training set that gradient routing reads."""


class RouteCollator:
    """A collator that puts `route` (or `route_weights`) beside what another collator makes of the same rows.

    | a row's `route` | the batch's `route`, int64 |
    |---|---|
    | one id | `[B]`; where the inner collator joins all rows into one (padding-free), `[1, T]`, one id per token |
    | one id per token | `[B, T]`, padded with 0, `unlabelled`; joined likewise |

    `route_weights` are pairs (retain, forget) per token, `[B, T, 2]`. A collator that makes several sequences of a row
    (chosen and rejected) must put them one block behind the other; each block gets the rows' routes.

    Raises:
        DataError: in a batch, where rows lack the column, or its tokens cannot be matched with those of the batch.

    >>> inner = lambda rows: {"input_ids": torch.zeros(len(rows), 3)}
    >>> RouteCollator(inner)([{"input_ids": [1, 2, 3], "route": 1}, {"input_ids": [4, 5], "route": 0}])["route"]
    tensor([1, 0])
    """

    def __init__(self, inner: Callable[[list[dict[str, Any]]], Mapping[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, rows: Sequence[Mapping[str, Any]], *args: Any) -> dict[str, Any]:
        present = [name for name in COLUMNS if any(name in row for row in rows)]
        if not present:
            raise DataError(
                f"RouteCollator: rows must have a column route or route_weights, found {', '.join(sorted(rows[0]))}; "
                "packing joins rows and keeps only columns with one value per token: give one id per token, or do not pack"
            )
        taken = {name: [row.get(name) for row in rows] for name in present}
        rest = [{key: value for key, value in row.items() if key not in COLUMNS} for row in rows]
        lengths = [len(row["input_ids"]) if "input_ids" in row else None for row in rest]
        batch = dict(self.inner(rest, *args))
        for name, values in taken.items():
            missing = [index for index, value in enumerate(values) if value is None]
            if missing:
                raise DataError(f"RouteCollator: every row must have {name}, found none in row {missing[0]} of a batch")
            batch[name] = _column(name, values, lengths, batch)
        return batch


def keep_columns(trainer: Trainer) -> Trainer:
    """Let `route` and `route_weights` of the training set reach the model of a trainer that drops columns.

    Wraps the trainer's collator in a `RouteCollator`, and adds the columns to those that `remove_unused_columns` keeps.
    Returns the trainer. Raises `DataError` where the training set has neither column.

    >>> trainer = tp.keep_columns(SFTTrainer(model, train_dataset=data, args=args))  # doctest: +SKIP
    >>> tp.InterventionCallback(tp.GradientRouting()).add_to(trainer)  # doctest: +SKIP
    """
    names = getattr(trainer.train_dataset, "column_names", None)  # theirs: a list of rows or a stream may not tell
    if names is not None and not any(name in names for name in COLUMNS):
        raise DataError(
            f"keep_columns: the training set must have a column route or route_weights, found {', '.join(names)}; add "
            "it before the trainer is made, and mind that packing keeps only columns with one value per token"
        )
    if not isinstance(trainer.data_collator, RouteCollator):
        trainer.data_collator = RouteCollator(trainer.data_collator)
    if trainer.args.remove_unused_columns:
        # The trainer's list of columns to keep is made on first use; there is no public way to add to it.
        theirs: Any = trainer
        theirs._set_signature_columns_if_needed()
        theirs._signature_columns = list(dict.fromkeys([*theirs._signature_columns, *COLUMNS]))
    return trainer


def _column(name: str, values: list[Any], lengths: list[int | None], batch: Mapping[str, Any]) -> Tensor:
    """The column as the batch's tensor."""
    rows = [torch.as_tensor(value) for value in values]
    per_token = rows[0].dim() > 0
    n, tokens = _shape(batch)
    if n == 1 and len(rows) > 1:  # joined: one sequence of all rows, so that a row's id becomes its tokens' id
        if not per_token:
            if None in lengths:
                raise DataError(f"RouteCollator: {name} of joined rows needs each row's input_ids, found none")
            rows = [row.expand(length) for row, length in zip(rows, lengths, strict=True)]  # type: ignore[arg-type]
        rows, per_token = [torch.cat(rows)], True
    if n % len(rows):
        raise DataError(f"RouteCollator: the batch has {n} sequences of {len(rows)} rows, so {name} cannot be matched")
    if not per_token:
        return torch.stack(rows).repeat(n // len(rows))
    column = torch.zeros((len(rows), tokens, *rows[0].shape[1:]), dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        column[index, _places(name, batch, index, len(row), tokens)] = row
    return column.repeat(n // len(rows), *[1] * (column.dim() - 1))


def _shape(batch: Mapping[str, Any]) -> tuple[int, int]:
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise DataError("RouteCollator: the inner collator must return input_ids [B, T], found none")
    return int(ids.shape[0]), int(ids.shape[1])


def _places(name: str, batch: Mapping[str, Any], row: int, length: int, tokens: int) -> Tensor:
    """The columns of a row's own tokens, on whichever side the collator pads."""
    mask = batch.get("attention_mask")
    masked = isinstance(mask, Tensor) and mask.dim() == 2
    places = mask[row].nonzero().flatten() if masked else torch.arange(min(length, tokens))  # type: ignore[index]
    if len(places) != length:
        raise DataError(
            f"RouteCollator: {name} has {length} values for a sequence of {len(places)} tokens; give one id per row, or "
            "one per token of the row's input_ids (the collator may have cut or joined the row)"
        )
    return places
