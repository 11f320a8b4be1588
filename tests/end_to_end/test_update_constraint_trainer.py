"""In a Trainer: the readings are in its log, the constraint holds, and resuming goes on from the same
anchor.
"""

import pytest
import torch
from datasets import Dataset
from torch.optim import AdamW
from transformers import Trainer, TrainingArguments

import tiny
import tropism as tp
from naive_constraint import delta_weights, dense_direction, lora, naive_leak, train, trainable


@pytest.fixture(scope="module")
def u():
    model = lora(seed=1)
    train(model, AdamW(trainable(model), lr=1e-2), steps=10, seed=9)
    return tp.parameter_directions(model)


def trainer(folder, guard, steps, **options):
    batch = tiny.batch(rows=24, tokens=8)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=1e-2, weight_decay=0.1, logging_steps=1, save_steps=4, report_to=[], use_cpu=True,
        disable_tqdm=True, lr_scheduler_type="constant", dataloader_pin_memory=False, seed=0, **options,
    )  # fmt: skip
    rows = Dataset.from_dict({key: value.tolist() for key, value in batch.items()}).with_format("torch")
    made = Trainer(lora(seed=2), arguments, train_dataset=rows)
    made.add_callback(tp.InterventionCallback(guard))
    return made


@pytest.mark.slow
def test_trained_resumed_and_logged(u, tmp_path):
    guard = tp.UpdateConstraint(u)
    whole = trainer(tmp_path / "whole", guard, steps=8)
    start = delta_weights(whole.model)
    whole.train()
    learned = delta_weights(whole.model)
    moved = {name: now - start[name] for name, now in learned.items()}
    assert naive_leak(moved, dense_direction(u)) < 1e-6
    logged = [
        entry["guard/update_constraint/leak_cumulative"]
        for entry in whole.state.log_history
        if "guard/update_constraint/leak_cumulative" in entry
    ]
    assert len(logged) == 8
    assert max(logged) < 1e-6

    trainer(tmp_path / "half", guard, steps=4).train()
    resumed = trainer(tmp_path / "half", guard, steps=8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-4"))
    for name, now in delta_weights(resumed.model).items():
        assert torch.equal(now, learned[name])
