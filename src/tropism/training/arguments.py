"""From the options of a fine-tune to transformers' `TrainingArguments`."""

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from tropism.training.checkpoints import KEPT, Checkpoints
from tropism.training.options import TrainOptions
from tropism.training.trackers import Tracking


def training_arguments(
    options: TrainOptions,
    *,
    device: str,
    bf16: bool,
    folder: Path,
    seed: int,
    tracking: Tracking | None,
    checkpoints: Checkpoints | None,
) -> TrainingArguments:
    """Return what the Trainer runs on; `folder` is where it may write what nobody keeps."""
    saving: dict[str, Any] = {"save_strategy": "no"}
    if checkpoints is not None and options.save_steps is not None:
        saving = {"save_strategy": "steps", "save_steps": options.save_steps, "save_total_limit": KEPT}
    return TrainingArguments(
        output_dir=str(folder if checkpoints is None else checkpoints.folder),
        num_train_epochs=options.length,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.first_batch // options.processes,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.trainer_schedule,
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        optim=options.optimizer,
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        adam_epsilon=options.adam_epsilon,
        neftune_noise_alpha=options.neftune_noise_alpha,
        bf16=bf16,
        use_cpu=device == "cpu",
        train_sampling_strategy="group_by_length",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="no" if options.eval_steps is None else "steps",
        eval_steps=options.eval_steps,
        per_device_eval_batch_size=options.first_batch // options.processes,
        report_to=list(options.report_to),
        run_name=None if tracking is None else tracking.name,
        project="tropism" if tracking is None else tracking.project,
        seed=seed,
        data_seed=seed,
        remove_unused_columns=False,
        disable_tqdm=True,
        **{"dataloader_pin_memory": device.startswith("cuda"), **saving, **options.trainer},
    )
