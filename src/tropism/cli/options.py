"""Options that several commands share."""

from enum import StrEnum
from typing import Annotated

import typer


class PositionName(StrEnum):
    """Named token positions."""

    last_prompt = "last_prompt"
    first_response = "first_response"
    response = "response"
    all = "all"


Model = Annotated[str, typer.Option("--model", help="Hub name or local folder of the model.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1)]
Device = Annotated[str, typer.Option("--device", help="auto, cuda, mps or cpu.")]
