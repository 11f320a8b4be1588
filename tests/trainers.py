"""Other people's trainers on a tiny batch: the plain one and TRL's, one optimizer step each, and the gradients it saw."""

import pytest
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

import tiny


class Gradients(TrainerCallback):
    """Keeps the gradients as the first optimizer step finds them."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = gradients(model)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def settings(folder, rows, accumulation=1, **changes):
    """Of one step over all rows, split into as many batches as are accumulated."""
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": rows // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_grad_norm": 0,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "remove_unused_columns": False,
        **changes,
    }


def dataset(rows, **columns):
    return Dataset.from_dict({key: value.tolist() for key, value in tiny.batch(rows).items()} | columns)


def hf_trainer(model, data, options):
    return Trainer(model, TrainingArguments(**options), default_data_collator, data)


def sft_trainer(model, data, options):
    trl = pytest.importorskip("trl")
    arguments = trl.SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True})
    return trl.SFTTrainer(model, arguments, default_data_collator, data, processing_class=tiny.tokenizer())
