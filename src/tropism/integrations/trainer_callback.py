"""A guard in a trainer that somebody else builds: transformers' `Trainer`, TRL's, Axolotl's."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tropism import hooks
from tropism.errors import AttachError, GuardNotInForce
from tropism.integrations import references
from tropism.integrations.references import Passes
from tropism.interventions.base import Attachment, Intervention

DEEPSPEED = (
    "InterventionCallback: no guard can be trusted under DeepSpeed, which reduces gradients and steps the optimizer "
    "inside its own backward pass; train with DDP or FSDP2"
)
OTHER_MODEL = (
    "{guard} is not in force: step {step} is done and the model that the callback was given never ran; this trainer "
    "trains a copy, so attach the guard to that one with guard.attach(model)"
)


class InterventionCallback(TrainerCallback):
    """Attaches a guard when training begins, detaches it when it ends, and writes its readings into the trainer's logs.

    Passes in evaluation mode are not guarded, unless an activation guard says `evaluation=True`. In every batch, and
    at the end, a guard that is not in force raises `GuardNotInForce`. What a guard must carry through a checkpoint is
    saved beside the trainer's own state, and read again when training resumes.

    Trainers call no callback when training raises: the guard is then still attached, until `detach()` or the next
    `train()`. `with guard.attach(model): trainer.train()` has no such gap.

    Args:
        guard: the guard, or several composed with `|`.
        resume_from: the checkpoint folder that training resumes from, where it does not lie in `output_dir`.
        rollouts: for guards on activations, whether what the model generates while it trains (GRPO) is sampled under
            the guard, `"guarded"`, or without it, `"plain"`. vLLM samples without it always.
        reference: likewise for the reference of DPO and its like. `"guarded"` guards a reference model of its own when
            the callback is added with `add_to`; log-probabilities computed ahead of training can only be `"plain"`.

    Raises: on `train()`, what `guard.attach` raises; `AttachError` under DeepSpeed and FSDP1, and where rollouts or the
    reference cannot be guarded as asked.

    ```python
    trainer = SFTTrainer(model, train_dataset=data, callbacks=[tp.InterventionCallback(guard)])
    trainer.train()
    trainer.state.log_history[0]["guard/gradient_projection/resid_post.12/share_removed"]
    ```
    """

    def __init__(
        self,
        guard: Intervention,
        *,
        resume_from: str | Path | None = None,
        rollouts: Passes = "guarded",
        reference: Passes = "guarded",
    ) -> None:
        references.check_passes("rollouts", rollouts)
        references.check_passes("reference", reference)
        self.guard = guard
        self.attachment: Attachment | None = None
        self._resume_from = resume_from
        self._rollouts, self._reference = rollouts, reference
        self._trainer: Trainer | None = None
        # What hangs on a reference model of its own: the guard, and what keeps the guard's columns from it.
        self._follower: Attachment | None = None
        self._strippers: list[hooks.Handle] = []

    def add_to(self, trainer: Trainer) -> "InterventionCallback":
        """Add this callback ahead of the trainer's others, so that trackers (wandb, TensorBoard) log the readings too.

        `trainer.add_callback` puts it behind them: then the readings are in `trainer.state.log_history` only. So added,
        the callback also sees the trainer's reference model.
        """
        trainer.callback_handler.callbacks.insert(0, self)
        self._trainer = trainer
        return self

    def detach(self) -> None:
        """Take the guard off without a last check; for after a training that raised."""
        for attachment in (self._follower, self.attachment):
            if attachment is not None and attachment.attached:
                attachment.release()
        self._let_go_of_reference()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Attach the guard."""
        if getattr(args, "deepspeed", None):
            raise AttachError(DEEPSPEED)
        if model is None:
            raise AttachError(
                "InterventionCallback: the trainer gave no model to on_train_begin; use guard.attach(model)"
            )
        self.detach()
        references.check_rollouts(self.guard, args, self._rollouts)
        reference = references.reference_model(self.guard, model, args, self._trainer, self._reference)
        spare = references.spared(self.guard, model, self._rollouts, self._reference)
        attachment = self.guard.attach(model, optimizer=optimizer, spare=spare)
        attachment.__enter__()
        self.attachment = attachment
        attachment.begin_training()
        self._prepare_reference(attachment, reference)
        if state.global_step:
            attachment.load(self._resume_from or _checkpoint(args, state))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Raise where training went on without the guarded model."""
        if self.attachment is not None and not self.attachment.passes:
            raise GuardNotInForce(OTHER_MODEL.format(guard=type(self.guard).__name__, step=state.global_step))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Add the readings since the last log to this one."""
        if self.attachment is None or not self.attachment.attached or not logs or "loss" not in logs:
            return
        readings = self.attachment.readings()
        logs.update(readings)
        if state.log_history:
            state.log_history[-1].update(readings)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the guard's state into the checkpoint."""
        if self.attachment is not None and state.is_world_process_zero:
            self.attachment.save(_checkpoint(args, state))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Detach the guard, and raise if it was not in force."""
        if self.attachment is None or not self.attachment.attached:
            return
        if self._follower is not None:
            self._follower.__exit__(None, None, None)
        self._let_go_of_reference()
        self.attachment.__exit__(None, None, None)

    def _prepare_reference(self, attachment: Attachment, guarded: nn.Module | None) -> None:
        """Guard the reference model where it is to be guarded, and keep columns for the guard alone from it."""
        followers = references.on_activations(self.guard)
        if guarded is not None and followers is not None:
            self._follower = followers.attach(guarded, leader=attachment).__enter__()
        own = getattr(self._trainer, "ref_model", None)  # theirs: only some trainers have one
        if own is not None and self.guard.batch_keys:
            self._strippers = list(hooks.without_columns(own, self.guard.batch_keys))

    def _let_go_of_reference(self) -> None:
        for handle in self._strippers:
            handle.remove()
        self._strippers, self._follower = [], None


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
