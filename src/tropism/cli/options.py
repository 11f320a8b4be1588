"""Options that several commands share."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from tropism.errors import UsageError

if TYPE_CHECKING:
    from tropism.directions.components import Components


class PositionName(StrEnum):
    """Named token positions."""

    last_prompt = "last_prompt"
    first_response = "first_response"
    response = "response"
    all = "all"


Model = Annotated[str, typer.Option("--model", help="Model: a hub name or a local folder.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Chats per forward pass.")]
Blocks = Annotated[
    str | None,
    typer.Option("--blocks", help="Path to the decoder blocks if it cannot be detected: model.layers."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cuda, mps or cpu.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns", help="Map a field to a column in your data: prompt=question. Repeatable.", show_default=False
    ),
]
ComponentChoice = Annotated[
    list[str] | None,
    typer.Option(
        "--components",
        help="Which directions to take, by number from 0: '0,12', or '10:0,12' for block 10. Repeatable.",
        show_default=False,
    ),
]


def parse_columns(given: Sequence[str] | None) -> dict[str, str] | None:
    """Return `{field: column}` from `field=column`; raises `UsageError` for another form."""
    columns = {}
    for one in given or ():
        name, equals, column = one.partition("=")
        if not (name and equals and column):
            raise UsageError(f"--columns takes OURS=THEIRS, as in prompt=question, found {one!r}")
        columns[name] = column
    return columns or None


def parse_components(given: Sequence[str] | None) -> "Components | None":
    """Return row numbers, or `{block: row numbers}`; raises `UsageError` for another form, or both."""
    by_block: dict[int, list[int]] = {}
    for_all: list[int] = []
    for one in given or ():
        block, colon, numbers = one.rpartition(":")
        parts = [part.strip() for part in numbers.split(",")]
        if not all(part.isdigit() for part in parts) or (colon and not block.strip().isdigit()):
            raise UsageError(
                f"--components takes numbers, as in 0,12, or those of a block, as in 10:0,12, found {one!r}"
            )
        if colon:
            by_block.setdefault(int(block), []).extend(int(part) for part in parts)
        else:
            for_all.extend(int(part) for part in parts)
    if by_block and for_all:
        raise UsageError("--components mixes indices for all blocks and for single ones; use one form or the other")
    return by_block or for_all or None
