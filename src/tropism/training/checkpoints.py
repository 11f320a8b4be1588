"""Checkpoints inside a fine-tune, from which it goes on as if it had never been interrupted: to the bit on the CPU.

transformers' Trainer writes the optimiser, the scheduler, the state of every random generator and its own counters. Two
things it does not do exactly. Of several adapters it makes one live again; so every tensor that is trained is written
here, by its own name. And it draws the order of an epoch anew from whatever the generators hold when it goes on in the
middle of one; so their state at the beginning of the epoch is kept as well.

```text
checkpoints/checkpoint-40/
  trainable.safetensors     every tensor that is trained
  optimizer.pt · scheduler.pt · rng_state.pth · trainer_state.json     the Trainer's own
  epoch/rng_state.pth       the generators when this epoch began
  guard_state.safetensors   what the guard must carry: the update constraint's anchor
  SEALED.json               written last
```
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tropism.adapters.factors import whole
from tropism.atomic import replacing
from tropism.errors import RunFailed
from tropism.interventions.base import Attachment
from tropism.training.sharding import is_sharded, later_reduction
from tropism.training.shared_batches import WholeBatches

TENSORS = "trainable.safetensors"
EPOCH = "epoch"
KEPT = 2
"""How many checkpoints are kept: a process that is killed while it writes one goes on from the one before."""


@dataclass(frozen=True)
class Checkpoints:
    """Where a fine-tune keeps its checkpoints, how often it writes one, and which one it goes on from."""

    folder: Path
    seal: Callable[[Path], None]
    """Called with a checkpoint's folder once everything in it is written."""
    resume_from: Path | None = None


class ExactTrainer(Trainer):
    """A `Trainer` whose checkpoints hold every trained tensor by its own name, and take nothing less back.

    Several processes together take the steps that one would. Rows to evaluate on have a collator of their own.
    """

    evaluation_collator: Any = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        world = self.args.world_size
        if world == 1:
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset
        together = self.args.train_batch_size * world
        order = LengthGroupedSampler(together * self.args.gradient_accumulation_steps, dataset=rows)
        return WholeBatches(order, together)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The rows to evaluate on, in batches that `evaluation_collator` makes."""
        of_training = self.data_collator
        self.data_collator = self.evaluation_collator or of_training
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = of_training

    def _has_mixed_mesh_grads(self, model: Any) -> bool:
        # The Trainer's norm for gradients on several meshes is also its one that is a plain number for sharded gradients.
        return is_sharded(model) or bool(super()._has_mixed_mesh_grads(model))

    def _defer_fsdp_gradient_reduction(self) -> Any:
        ours: Any = self.model
        return later_reduction(ours)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        ours: Any = self.model
        save_trained(ours, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        ours: Any = self.model if model is None else model
        load_trained(ours, Path(resume_from_checkpoint))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def whole_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that are trained; where they are sharded (FSDP2) every process must ask, and gets the whole."""
    return {name: whole(p).cpu().contiguous() for name, p in trained(model).items()}


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write a model's trained tensors into a folder."""
    write_tensors(whole_tensors(model), folder)


def write_tensors(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write trained tensors into a folder, as `load_trained` reads them."""
    with replacing(folder / TENSORS) as path:
        save_file(tensors, path)


def load_trained(model: nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's tensors into a model; raises `RunFailed` where they are not exactly those that are trained."""
    held, ours = load_file(checkpoint / TENSORS), trained(model)
    strange = sorted(held.keys() ^ ours.keys()) or [n for n, p in ours.items() if p.shape != held[n].shape]
    if strange:
        raise RunFailed(
            f"the checkpoint {checkpoint.name} does not fit the model ({len(strange)} tensors differ, the first is "
            f"{strange[0]!r}); remove its folder and run again"
        )
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(held[name])


def is_finished(checkpoint: Path) -> bool:
    """Whether a checkpoint was written after the last step, so that nothing is left to train."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return bool(state.global_step >= state.max_steps)


class Sealing(TrainerCallback):
    """Adds to each checkpoint what the Trainer leaves out, and seals it; keeps the generators' state at each epoch's start."""

    def __init__(self, checkpoints: Checkpoints, trainer: Trainer) -> None:
        self._checkpoints = checkpoints
        # It alone knows which devices have a generator.
        self._trainer: Any = trainer
        self._resume_from = checkpoints.resume_from
        self._attachment: Attachment | None = None

    def carry(self, attachment: Attachment) -> None:
        """Keep this guard's state as well, and give it the one that it had."""
        self._attachment = attachment
        if self._resume_from is not None:
            attachment.load(self._resume_from)

    @property
    def _epoch(self) -> Path:
        return self._checkpoints.folder / EPOCH

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the generators' state; in the epoch that is gone on with, give them the one it began with."""
        if self._resume_from is not None:
            # Written after an epoch's last step, a checkpoint holds the state with which the next one begins.
            between = float(state.epoch or 0).is_integer()
            self._trainer._load_rng_state(str(self._resume_from if between else self._resume_from / EPOCH))
            self._resume_from = None
        self._epoch.mkdir(parents=True, exist_ok=True)
        self._trainer._save_rng_state(str(self._epoch))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Complete the checkpoint that the Trainer has just written."""
        _wait_for_all()  # each process has written the state of its own generators
        if state.is_world_process_zero:
            folder = self._checkpoints.folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            shutil.copytree(self._epoch, folder / EPOCH, dirs_exist_ok=True)
            if self._attachment is not None:
                self._attachment.save(folder)
            self._checkpoints.seal(folder)
        _wait_for_all()


def _wait_for_all() -> None:
    """Wait until every process of a distributed training has come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
