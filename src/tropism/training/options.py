"""The options of a fine-tune: what an experiment file says under `train:`, and what the code runs on."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tropism.training import passthrough

AUTO_BATCH = 8
"""The batch that `batch_size: auto` begins with, a power of two."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]

Schedule = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]
"""Trainer's schedules, but those that follow an evaluation's loss (`reduce_lr_on_plateau`, `greedy`)."""

Adam = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
]
"""Optimisers that take Adam's betas. Lion takes no epsilon."""
Optimizer = Literal[
    Adam, "sgd", "adafactor", "adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"
]
"""Trainer's optimisers whose step comes after the backward pass, where guards act, and that have one set of weights.

Not LOMO and the layer-wise kinds, which step inside the backward pass; not the schedule-free kinds, whose trained weights
are others than those they step.
"""

SHARDED = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Optimisers that treat each number by itself, so that they step a part of a tensor as they step the whole."""

Trained = Annotated[
    Literal["lora", "full"],
    BeforeValidator(
        lambda said: "full" if said == "none" else said, json_schema_input_type=Literal["lora", "full", "none"]
    ),
]
"""What is trained. `none`, as Axolotl and others say it, is read as `full`: identity, hash and messages are the same."""

LATER: dict[str, frozenset[str]] = {
    "TrainOptions": frozenset(
        {
            "adapter",
            "eval_steps",
            "eval_on",
            "processes",
            "parallel",
            "packing",
            "warmup_ratio",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "neftune_noise_alpha",
            "trainer",
        }
    ),
    "LoraOptions": frozenset(
        {"rslora", "dora", "bias", "layers_to_transform", "modules_to_save", "target_parameters", "init"}
    ),
}
"""Options that came after the first release: where they are not used, a run's identity is what it was without them."""


def given_later(options: BaseModel, dumped: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain options without those of `LATER` that have their default."""
    fields = type(options).model_fields
    idle = {name for name in LATER[type(options).__name__] if getattr(options, name) == fields[name].default}
    return {name: value for name, value in dumped.items() if name not in idle}


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
    rslora: bool = False
    """Scale the update by `alpha / √r` instead (rsLoRA)."""
    dora: bool = False
    """Learn the magnitude of each weight beside the update of its direction (DoRA)."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the base model are trained as well."""
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = None
    """Adapt these blocks alone, by number from 0."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, by PEFT's names."""
    target_parameters: list[str] = []
    """Parameters that get an adapter beside `target_modules`: the fused experts of a mixture-of-experts model."""
    init: Literal["default", "gaussian", "orthogonal"] = "default"
    """How the factors begin. The kinds that change the base weight (PiSSA, OLoRA, LoftQ) are not among them."""

    @property
    def effective_alpha(self) -> int:
        """`alpha`, or its default `2·r`, which leaves the update scaled by 2 whatever the rank."""
        return 2 * self.r if self.alpha is None else self.alpha


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
    schedule: Schedule = "linear"
    """How the learning rate changes after the warm-up: it stays, falls to 0 on a line or a cosine, or another of Trainer's
    schedules, whose own options are under `trainer: {lr_scheduler_kwargs: ...}`."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from 0, whatever the schedule."""
    warmup_ratio: Share = 0.0
    """The same as a share of all steps, instead of `warmup_steps`."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight decay of the optimiser."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    optimizer: Optimizer = "adamw_torch"
    """The optimiser, by Trainer's name; those with 8 bits, paged or of another kind need a package of their own."""
    adam_beta1: Share = 0.9
    """How much of the first moment Adam and its kind keep at each step."""
    adam_beta2: Share = 0.999
    """How much of the second moment they keep."""
    adam_epsilon: Positive = 1e-8
    """What they add to the root of the second moment."""
    neftune_noise_alpha: Positive | None = None
    """Add noise to the embeddings in training (NEFTune): uniform in ±alpha/√(tokens · width)."""
    bf16: bool | Literal["auto"] = "auto"
    """Autocast to bfloat16; `auto` where that is faster: measured on a CPU, taken for granted on an accelerator that has it."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens of a training row; `overflow` says what happens to a longer one."""
    overflow: Literal["drop_turns", "truncate", "error"] = "drop_turns"
    """What happens to a row over `max_length`: its last turns go, it is cut off, or it is an error."""
    adapter: Trained = "lora"
    """What is trained: a LoRA adapter, or with `full` every weight of the model, in float32 and without an adapter; `none` is
    another word for `full`."""
    lora: LoraOptions = LoraOptions()
    """The adapter that is trained; nothing with `adapter: full`."""
    forget_lora: LoraOptions | None = None
    """With gradient routing: the second adapter, `forget`; by default like `lora`."""
    report_to: list[str] = []
    """Trackers, by Trainer's names: wandb, tensorboard, mlflow, ..."""
    save_steps: Annotated[int, Field(ge=1)] | None = None
    """Write a checkpoint every so many steps, kept until the run is trained: one that was interrupted goes on from it."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Train and evaluate in this many processes, on a GPU each where there are GPUs; each takes its share of `batch_size` and
    of the prompts."""
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """How several processes share a training: `ddp` holds the whole model in each; `fsdp2` divides weights, gradients and the
    optimizer's state among them, and gathers a block's weights where they are needed."""
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    """Take the loss on the set `eval_on` every so many steps of the training, into the run's `evaluation.jsonl`."""
    eval_on: str | None = None
    """A set under `data:` with responses, for `eval_steps`; nothing is chosen by it."""
    packing: bool = False
    """Lay the chats of a forward pass end to end in one row without padding, none of which sees another. The steps are those of
    padded batches; a model in which chats of a row would see each other is refused."""
    trainer: dict[str, Any] = {}
    """Any further field of transformers' `TrainingArguments`, by its own name."""

    @model_validator(mode="after")
    def _together(self) -> "TrainOptions":
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give epochs or max_steps, not both")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("give warmup_steps or warmup_ratio, not both")
        betas = [name for name in ("adam_beta1", "adam_beta2", "adam_epsilon") if name in self._other_than_default()]
        if betas and (
            self.optimizer not in get_args(Adam) or (betas[-1] == "adam_epsilon" and "lion" in self.optimizer)
        ):
            raise ValueError(f"{betas[-1]} does nothing with the optimizer {self.optimizer}; drop it")
        if (self.eval_steps is None) != (self.eval_on is None):
            raise ValueError(
                "eval_steps and eval_on say together when and on which set the loss is taken; give both or neither"
            )
        if self.packing and self.neftune_noise_alpha is not None:
            raise ValueError(
                "neftune_noise_alpha is refused with packing: true: its noise falls with the length of a row, which would be "
                "that of all chats together; drop one of the two"
            )
        self._check_parallel()
        if self.adapter == "full" and self.forget_lora is not None:
            raise ValueError(
                "forget_lora does nothing with adapter: full, which trains no adapters; drop one of the two"
            )
        if self.trainer:
            passthrough.check(self.trainer)
        if self.schedule not in ("constant", "linear", "cosine") or "lr_scheduler_kwargs" in self.trainer:
            passthrough.check_schedule(self.trainer_schedule, self.trainer.get("lr_scheduler_kwargs"))
        return self

    def _check_parallel(self) -> None:
        if self.parallel == "fsdp2" and self.processes == 1:
            raise ValueError("parallel: fsdp2 does nothing in one process; set processes, or drop it")
        if self.parallel == "fsdp2" and self.optimizer not in SHARDED:
            raise ValueError(
                f"parallel: fsdp2 takes torch's own optimizers, {', '.join(SHARDED)}, found {self.optimizer!r}, which may "
                f"not step divided weights as it steps whole ones"
            )
        if self.parallel == "fsdp2" and self.save_steps is not None:
            raise ValueError(
                "save_steps is refused with parallel: fsdp2: transformers writes no checkpoint of an optimizer whose state is "
                "divided among processes; use ddp, or drop save_steps"
            )
        if self.first_batch % self.processes:
            raise ValueError(
                f"{self.processes} processes must share a batch of {self.first_batch} evenly; set batch_size to a multiple of "
                f"processes"
            )

    def _other_than_default(self) -> set[str]:
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}

    @property
    def warmup(self) -> float:
        """The warm-up as Trainer takes it: a number of steps, or below 1 a share of them."""
        return float(self.warmup_steps or self.warmup_ratio)

    @property
    def trainer_schedule(self) -> str:
        """The schedule by Trainer's name: its `constant` ignores the warm-up, its `constant_with_warmup` does not."""
        return "constant_with_warmup" if self.schedule == "constant" and self.warmup else self.schedule

    @property
    def first_batch(self) -> int:
        """Examples per forward pass, with `auto` the first number that is tried."""
        return AUTO_BATCH if self.batch_size == "auto" else self.batch_size

    def longest_row(self, longest_chat: int) -> int:
        """Tokens of the longest row that the model may be given in training, where the longest chat has so many.

        >>> TrainOptions(batch_size=4).longest_row(100), TrainOptions(batch_size=4, packing=True).longest_row(100)
        (100, 400)
        """
        return longest_chat * (self.first_batch // self.processes) if self.packing else longest_chat

    def attempts(self) -> "list[TrainOptions]":
        """Return these options with the batches to try, largest first; examples per optimiser step are the same in all.

        >>> [(o.batch_size, o.accumulation) for o in TrainOptions(batch_size="auto", accumulation=2).attempts()]
        [(8, 2), (4, 4), (2, 8), (1, 16)]
        """
        if self.batch_size != "auto":
            return [self]
        # Each process takes its share, of one example at least.
        halvings = [n for n in range(AUTO_BATCH.bit_length()) if (AUTO_BATCH >> n) % self.processes == 0]
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
