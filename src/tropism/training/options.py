"""The options of a fine-tune: what an experiment file says under `train:`, and what the code runs on."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

AUTO_BATCH = 8
"""The batch that `batch_size: auto` begins with, a power of two."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LoraOptions(BaseModel):
    """LoRA, as PEFT names it; `alpha` defaults to `2·r`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    r: Annotated[int, Field(ge=1)] = 8
    """The rank of the adapter."""
    alpha: Annotated[int, Field(ge=1)] | None = None
    """The update is scaled by `alpha / r`; `2·r` by default."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    target_modules: str | list[str] = "all-linear"
    """Which linear layers get an adapter: `all-linear` (of a multimodal model the language model's), or PEFT's names of
    modules."""


class TrainOptions(BaseModel):
    """A supervised LoRA fine-tune on `transformers.Trainer`; give `epochs` or `max_steps`, not both."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    epochs: Positive | None = None
    """Passes over the training set; 1 where `max_steps` is not given either."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps, instead of `epochs`."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    """Examples per forward pass; `auto` begins with 8 and halves until they fit in memory, with `accumulation` doubled."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Forward passes per optimiser step."""
    learning_rate: Positive = 1e-3
    """The peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate changes after the warm-up: it stays, or falls to 0 on a line or a cosine."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from 0, whatever the schedule."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight decay of the optimiser."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    optimizer: Literal["adamw_torch", "sgd", "adafactor"] = "adamw_torch"
    """The optimiser, by Trainer's name."""
    bf16: bool | Literal["auto"] = "auto"
    """Autocast to bfloat16; `auto` where the device has the instructions."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens of a training row; `overflow` says what happens to a longer one."""
    overflow: Literal["drop_turns", "truncate", "error"] = "drop_turns"
    """What happens to a row over `max_length`: its last turns go, it is cut off, or it is an error."""
    lora: LoraOptions = LoraOptions()
    """The adapter that is trained."""
    forget_lora: LoraOptions | None = None
    """With gradient routing: the second adapter, `forget`; by default like `lora`."""
    report_to: list[str] = []
    """Trackers, by Trainer's names: wandb, tensorboard, mlflow, ..."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainOptions":
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give epochs or max_steps, not both")
        return self

    @property
    def trainer_schedule(self) -> str:
        """The schedule by Trainer's name: its `constant` ignores the warm-up, its `constant_with_warmup` does not."""
        return "constant_with_warmup" if self.schedule == "constant" and self.warmup_steps else self.schedule

    @property
    def first_batch(self) -> int:
        """Examples per forward pass, with `auto` the first number that is tried."""
        return AUTO_BATCH if self.batch_size == "auto" else self.batch_size

    def attempts(self) -> "list[TrainOptions]":
        """Return these options with the batches to try, largest first; examples per optimiser step are the same in all.

        >>> [(o.batch_size, o.accumulation) for o in TrainOptions(batch_size="auto", accumulation=2).attempts()]
        [(8, 2), (4, 4), (2, 8), (1, 16)]
        """
        if self.batch_size != "auto":
            return [self]
        halvings = range(AUTO_BATCH.bit_length())
        sizes = [{"batch_size": AUTO_BATCH >> n, "accumulation": self.accumulation << n} for n in halvings]
        return [self.model_copy(update=size) for size in sizes]

    @property
    def length(self) -> float:
        """Epochs, where `max_steps` does not say otherwise; 1 by default."""
        return 1.0 if self.epochs is None else self.epochs

    def steps(self, examples: int) -> int:
        """Optimiser steps for a training set of this size, as the Trainer counts them."""
        if self.max_steps is not None:
            return self.max_steps
        per_epoch = math.ceil(math.ceil(examples / self.first_batch) / self.accumulation)
        return math.ceil(per_epoch * self.length)
