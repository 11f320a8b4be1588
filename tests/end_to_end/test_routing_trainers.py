"""The route column reaches gradient routing through other people's trainers, and routes as in a plain loop."""

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

import routing_oracle as oracle
import tiny
import tropism as tp
from hand_edits import assert_same, differ
from tropism.errors import DataError

ROWS = 4
FORGET, UNLABELLED = 1, 0
MIXED = [FORGET, UNLABELLED, FORGET, UNLABELLED]


class Gradients(TrainerCallback):
    """Keeps the gradients as the first optimizer step finds them."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = gradients(model)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def dataset(route):
    columns = {key: value.tolist() for key, value in tiny.batch(ROWS).items()}
    return Dataset.from_dict(columns | ({} if route is None else {"route": route}))


def settings(accumulation, tmp_path):
    return {
        "output_dir": str(tmp_path),
        "max_steps": 1,
        "per_device_train_batch_size": ROWS // accumulation,
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
    }


def hf_trainer(route, accumulation, tmp_path):
    return Trainer(
        oracle.model(dtype=torch.float32),
        TrainingArguments(**settings(accumulation, tmp_path)),
        default_data_collator,
        dataset(route),
    )


def sft_trainer(route, accumulation, tmp_path):
    trl = pytest.importorskip("trl")
    options = trl.SFTConfig(**settings(accumulation, tmp_path), dataset_kwargs={"skip_prepare_dataset": True})
    return trl.SFTTrainer(
        oracle.model(dtype=torch.float32),
        options,
        default_data_collator,
        dataset(route),
        processing_class=tiny.tokenizer(),
    )


def trained(trainer):
    kept = Gradients()
    trainer.add_callback(kept)
    tp.InterventionCallback(tp.GradientRouting()).add_to(trainer)
    trainer.train()
    return kept.found


def in_a_plain_loop(route):
    model = oracle.model(dtype=torch.float32)
    with tp.GradientRouting().attach(model):
        model(**tiny.batch(ROWS), route=torch.tensor(route)).loss.backward()
    return gradients(model)


@pytest.mark.parametrize("runner", [hf_trainer, sft_trainer])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_trainer_routes_as_a_plain_loop_does(runner, accumulation, tmp_path):
    found = trained(runner(MIXED, accumulation, tmp_path))
    assert_same(in_a_plain_loop(MIXED), found, 1e-5)
    assert differ(in_a_plain_loop([UNLABELLED] * ROWS), found) > 1e-3


@pytest.mark.parametrize("runner", [hf_trainer, sft_trainer])
def test_rows_of_the_trait_alone_move_the_forget_adapter_alone(runner, tmp_path):
    trainer = runner([FORGET] * ROWS, 1, tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trained(trainer)
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(".forget." in name for name in moved)


@pytest.mark.parametrize("runner", [hf_trainer, sft_trainer])
def test_a_dataset_without_the_column_is_refused(runner, tmp_path):
    with pytest.raises(DataError, match="must carry the column route"):
        trained(runner(None, 1, tmp_path))
