"""What a file may hand on to transformers' `TrainingArguments`: any field that is not one of Tropism's own options.

A field that Tropism sets itself is refused with the name it has here, so that nothing is set twice; one that would do
nothing, or that takes away what guards rest on, is refused with the reason.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

OURS: dict[str, str] = {
    "num_train_epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "auto_find_batch_size": "train.batch_size: auto",
    "learning_rate": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "warmup_steps": "train.warmup_steps",
    "warmup_ratio": "train.warmup_ratio",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "optim": "train.optimizer",
    "adam_beta1": "train.adam_beta1",
    "adam_beta2": "train.adam_beta2",
    "adam_epsilon": "train.adam_epsilon",
    "neftune_noise_alpha": "train.neftune_noise_alpha",
    "bf16": "train.bf16",
    "fp16": "train.bf16",
    "gradient_checkpointing": "train.checkpointing",
    "gradient_checkpointing_kwargs": "train.checkpointing",
    "activation_checkpointing": "train.checkpointing",
    "activation_checkpointing_kwargs": "train.checkpointing",
    "save_strategy": "train.save_steps",
    "save_steps": "train.save_steps",
    "save_total_limit": "train.save_steps",
    "report_to": "train.report_to",
    "seed": "seeds",
    "data_seed": "seeds",
    "use_cpu": "device",
    "output_dir": "tropism run --out",
}
"""Field → what says it in an experiment file."""

NOTHING = "every step is logged, and each run has its own folder and name"
GUARDS = "no guard can be held to what it promises there"
LOSS = "the loss is Tropism's own, on the supervised tokens"
REFUSED: dict[str, str] = {
    "label_smoothing_factor": LOSS,
    "label_names": LOSS,
    "prediction_loss_only": LOSS,
    "use_liger_kernel": LOSS,
    "liger_kernel_config": LOSS,
    "deepspeed": GUARDS,
    "fsdp": GUARDS,
    "fsdp_config": GUARDS,
    "parallelism_config": GUARDS,
    "train_sampling_strategy": "batches are grouped by length",
    "length_column_name": "batches are grouped by length",
    "remove_unused_columns": "guards read columns that the model does not",
    "logging_nan_inf_filter": "a loss that is not finite fails its run",
    "average_tokens_across_devices": "the loss is a mean over the tokens of all processes",
}
"""Field → why nobody sets it."""
PREFIXES: dict[str, str] = {
    "logging": NOTHING,
    "log_": NOTHING,
    "run_name": NOTHING,
    "project": NOTHING,
    "trackio": NOTHING,
    "disable_tqdm": NOTHING,
    "eval": "what is measured is under measure:",
    "per_device_eval": "what is measured is under measure:",
    "do_": "what is measured is under measure:",
    "metric_for": "what is measured is under measure:",
    "greater_is": "what is measured is under measure:",
    "load_best": "the adapter of the last step is what is measured",
    "batch_eval": "what is measured is under measure:",
    "include_for": "what is measured is under measure:",
    "bf16_full": "generate.dtype says how it is evaluated",
    "fp16_full": "generate.dtype says how it is evaluated",
    "save_": "train.save_steps writes what resuming needs",
    "restore": "train.save_steps writes what resuming needs",
    "resume": "tropism run goes on by itself",
    "ignore_data": "it would not be resumed exactly",
    "push_": "tropism push does that",
    "hub_": "tropism push does that",
    "enable_jit": "train.save_steps writes what resuming needs",
}
"""The beginning of a field's name → why nobody sets it."""


def check(given: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a field that is not there, is Tropism's own, or has a value that transformers refuses."""
    _check(json.dumps(dict(given), sort_keys=True, default=str))


@lru_cache(maxsize=64)
def _check(text: str) -> None:
    given = json.loads(text)
    # Before transformers is imported: it takes seconds, and a file is checked often.
    for name in given:
        if name in OURS:
            raise ValueError(f"trainer: {name} is said by {OURS[name]} here; set that instead")
    from transformers import TrainingArguments

    known = {field.name for field in fields(TrainingArguments) if field.init}
    for name in given:
        if name not in known:
            raise ValueError(f"trainer: {name!r} is no field of transformers' TrainingArguments; check its name")
        reason = REFUSED.get(name) or next((why for start, why in PREFIXES.items() if name.startswith(start)), "")
        if reason:
            raise ValueError(f"trainer: {name} cannot be set: {reason}")
    try:
        TrainingArguments(output_dir="unused", report_to=[], **given)
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"trainer: transformers refuses {given}: {_first_line(error)}") from None


def check_schedule(name: str, options: Mapping[str, Any] | None) -> None:
    """Raise `ValueError` where a schedule lacks an option, or has one that it does not take."""
    _check_schedule(name, json.dumps(dict(options or {}), sort_keys=True))


@lru_cache(maxsize=64)
def _check_schedule(name: str, options: str) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    try:
        get_scheduler(
            name, optimizer, num_warmup_steps=1, num_training_steps=10, scheduler_specific_kwargs=json.loads(options)
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the schedule {name} does not go with trainer: {{lr_scheduler_kwargs: {options}}}: {_first_line(error)}"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
