"""The options of generation: what an experiment file says under `generate:`. Imports no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class GenerateOptions(BaseModel):
    """How responses are generated; `temperature: 0` is greedy."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    max_new_tokens: Annotated[int, Field(ge=1)] = 96
    """The most tokens of a response."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Prompts answered together."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0 always takes the likeliest token; above 0 responses are sampled."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of generation; `auto` is bfloat16 wherever the device has the instructions, a CPU included."""
