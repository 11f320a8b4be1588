"""The options of a fine-tune: what an experiment file says under `train:`, and what the code runs on."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LoraOptions(BaseModel):
    """LoRA, as PEFT names it; `alpha` defaults to `2·r`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    r: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[int, Field(ge=1)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"


class TrainOptions(BaseModel):
    """A supervised LoRA fine-tune on `transformers.Trainer`; give `epochs` or `max_steps`, not both."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    epochs: Positive | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 8
    accumulation: Annotated[int, Field(ge=1)] = 1
    learning_rate: Positive = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_grad_norm: Positive = 1.0
    optimizer: Literal["adamw_torch", "sgd", "adafactor"] = "adamw_torch"
    bf16: bool | Literal["auto"] = "auto"
    checkpointing: bool = False
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens of a training chat; a longer one loses whole turns from its end, never a part of one."""
    lora: LoraOptions = LoraOptions()
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
    def length(self) -> float:
        """Epochs, where `max_steps` does not say otherwise; 1 by default."""
        return 1.0 if self.epochs is None else self.epochs

    def steps(self, examples: int) -> int:
        """Optimiser steps for a training set of this size, as the Trainer counts them."""
        if self.max_steps is not None:
            return self.max_steps
        per_epoch = math.ceil(math.ceil(examples / self.batch_size) / self.accumulation)
        return math.ceil(per_epoch * self.length)
