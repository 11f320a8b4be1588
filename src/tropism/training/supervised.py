"""One supervised LoRA fine-tune on `transformers.Trainer`, with a guard attached: from chats to an adapter on disk."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, overload

from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tropism.adapters.targets import check_reached
from tropism.data.batches import check_embedded, embeddings
from tropism.data.collate import Collator
from tropism.data.render import Rendered
from tropism.errors import DataError, RunFailed
from tropism.interventions.base import Attachment, Intervention
from tropism.precision import for_training
from tropism.site import base_model
from tropism.training.arguments import training_arguments
from tropism.training.checkpoints import Checkpoints, ExactTrainer, Sealing, is_finished, load_trained, trained
from tropism.training.loss import SUPERVISED, SupervisedLoss
from tropism.training.options import TrainOptions
from tropism.training.packing import WITHOUT_CACHE, check_columns, check_packable
from tropism.training.sharding import shard
from tropism.training.shared_batches import Rows, SameOrder
from tropism.training.trackers import Tracking, tracked

notes = logging.getLogger("tropism")

Report = Callable[[int, int, Mapping[str, float]], None]
"""Called after every step with the step, the number of steps, and what was logged."""


@dataclass(frozen=True)
class Row:
    """One training example, tokenised, with the columns that the guard reads."""

    rendered: Rendered
    columns: Mapping[str, Any]


class _Items(Sequence[dict[str, Any]]):
    """Rows as the Trainer reads them, each made when it is asked for: the rows may lie on disk."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        if isinstance(index, slice):
            return _Items(self._rows[index])
        row = self._rows[index]
        return {"rendered": row.rendered, "input_ids": row.rendered.input_ids, **row.columns}


class _SupervisedCollator(Collator):
    """The collator of a training set: the labels twice, once for the loss and once for the hooks.

    `embedded` is the number of tokens that the model has embeddings of; another token is refused.
    """

    def __init__(self, embedded: int, pad_id: int, extra: Sequence[str], *, packing: bool = False) -> None:
        super().__init__(pad_id, extra, packing=packing)
        self._embedded = embedded

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        check_embedded(self._embedded, [row["rendered"] for row in rows])
        batch = super().__call__(rows)
        batch[SUPERVISED] = batch["labels"]
        return batch | WITHOUT_CACHE if self.packing else batch


class _Readings(TrainerCallback):
    """Puts the guard's readings into the log; ahead of all other callbacks, so that trackers see them."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            logs.update(self._attachment.readings())


class _StepLog(TrainerCallback):
    """Writes `training.jsonl`, reports progress, and ends a run whose loss or gradient is no longer a number."""

    def __init__(self, file: TextIO, report: Report) -> None:
        self._file, self._report = file, report

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        row = {"step": state.global_step, **logs}
        bad = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        # JSON has no NaN: what is not a number is written as null, and the run is failed below.
        clean = {name: None if name in bad else value for name, value in row.items()}
        self._file.write(json.dumps(clean, allow_nan=False) + "\n")
        self._file.flush()
        for name, what in (("loss", "loss"), ("grad_norm", "gradient's norm")):
            if name in bad:  # a gradient that is no number is one step ahead of the loss, which a last step has no more
                raise RunFailed(f"the {what} at step {state.global_step} is {row[name]}, not a finite number")
        self._report(state.global_step, state.max_steps, {k: v for k, v in clean.items() if isinstance(v, float)})


class _EvaluationLog(TrainerCallback):
    """Writes what the loss on other rows is while the model trains."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if logs and "eval_loss" in logs and state.is_world_process_zero:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, "eval_loss": logs["eval_loss"]}) + "\n")


class _FirstBackward(TrainerCallback):
    """Ends a training in which some adapters never learn, before its first step."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if state.global_step == 0:
            check_reached(model)


def train(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[Row],
    options: TrainOptions,
    *,
    pad_id: int,
    seed: int,
    log: Path,
    guard: Intervention | None = None,
    report: Report = lambda *_: None,
    callbacks: Sequence[TrainerCallback] = (),
    tracking: Tracking | None = None,
    checkpoints: Checkpoints | None = None,
    evaluate_on: Sequence[Row] = (),
) -> dict[str, float]:
    """Fine-tune `model` (a `PeftModel`, its adapter trainable, or a model trained itself) on `rows`; per-step log to `log`.

    Batches are grouped by length, and padded, or with `packing` laid into one row; logits are computed only where there are
    labels; bfloat16 autocast where the device has the instructions. The guard is attached to the model and to the optimiser for
    exactly the training, and `GuardNotInForce` is raised where it did not act. `tracking` names the run for the trackers of
    `report_to`. With `checkpoints` it writes one every `save_steps`, and goes on from the one that they name. Every
    `eval_steps` the mean loss of the batches of `evaluate_on` is written to `evaluation.jsonl` beside the log.

    Returns the Trainer's metrics. Raises `ModelError` where a kind of adapted module gets no gradient, or with `packing` where
    chats of one row would not be what they are alone, `RunFailed` where the loss or its gradient is not finite, `DataError` for
    an empty set.
    """
    if not rows:
        raise DataError("the training set is empty; a fine-tune needs at least one example")
    log.parent.mkdir(parents=True, exist_ok=True)
    _say_what_is_left_out(model)
    device = str(next(model.parameters()).device)
    bf16 = for_training(device, base_model(model).config).bfloat16 if options.bf16 == "auto" else options.bf16
    arguments = training_arguments(
        options,
        device=device,
        bf16=bf16,
        folder=log.parent / "trainer",
        seed=seed,
        tracking=tracking,
        checkpoints=checkpoints,
    )
    if options.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    keys = guard.batch_keys if guard is not None else frozenset[str]()
    if options.packing:
        check_columns(keys)
        check_packable(model, bf16)
    resume_from = None if checkpoints is None else checkpoints.resume_from
    if resume_from is not None and is_finished(resume_from):
        load_trained(model, resume_from)
        return {}
    evaluation = log.with_name("evaluation.jsonl")
    if resume_from is None:
        evaluation.unlink(missing_ok=True)
    with log.open("w" if resume_from is None else "a", encoding="utf-8") as file, tracked(options.report_to, tracking):
        step_log, loss = _StepLog(file, report), SupervisedLoss(model)
        trainer = ExactTrainer(
            model=model,
            args=arguments,
            train_dataset=Rows(_Items(rows)),
            eval_dataset=Rows(_Items(evaluate_on)) if evaluate_on else None,
            data_collator=_SupervisedCollator(embeddings(model), pad_id, sorted(keys), packing=options.packing),
            compute_loss_func=loss,
            callbacks=[step_log, _EvaluationLog(evaluation), _FirstBackward(), *callbacks],
        )
        if arguments.world_size != options.processes:
            raise RunFailed(
                f"train.processes is {options.processes}, and this is one of {arguments.world_size} processes of a "
                f"launcher; run it without the launcher"
            )
        # Padded also where training packs: the Trainer weights the loss of a batch by its rows.
        trainer.evaluation_collator = _SupervisedCollator(embeddings(model), pad_id, sorted(keys))
        if options.parallel == "fsdp2":
            shard(model, trainer)
        # The Trainer prints every log as a bare dict; the report above is what a person reads.
        trainer.remove_callback(PrinterCallback)
        sealing = None if checkpoints is None else Sealing(checkpoints, trainer)
        if sealing is not None:
            trainer.add_callback(sealing)
        trainer.add_callback(SameOrder())
        resumed = None if resume_from is None else str(resume_from)
        with loss.in_force():
            if guard is None:
                result = trainer.train(resume_from_checkpoint=resumed)
            else:
                trainer.create_optimizer()
                with guard.attach(model, optimizer=trainer.optimizer) as attachment:
                    trainer.callback_handler.callbacks.insert(0, _Readings(attachment))
                    if sealing is not None:
                        sealing.carry(attachment)
                    result = trainer.train(resume_from_checkpoint=resumed)
    if options.parallel == "fsdp2" and not all(isinstance(p, DTensor) for p in trained(model).values()):
        raise RunFailed("parallel: fsdp2 did not shard every trained weight; use parallel: ddp")
    _check_finite(model)
    return dict(result.metrics)


def _say_what_is_left_out(model: nn.Module) -> None:
    """Log that a mixture of experts is trained without the loss by which its router is balanced, where its config asks for it."""
    inner: Any = base_model(model)
    config = inner.config.get_text_config(decoder=True)
    if getattr(config, "output_router_logits", False) and getattr(config, "router_aux_loss_coef", 0):
        notes.warning(
            "the model's config asks for the router's balancing loss (output_router_logits, router_aux_loss_coef=%g); the "
            "loss here is that of the supervised tokens alone",
            config.router_aux_loss_coef,
        )


def _check_finite(model: nn.Module) -> None:
    """Raise `RunFailed` where a trained weight is no number: a last step's gradient may spoil it after its loss was read."""
    held = {name: p.to_local() if isinstance(p, DTensor) else p for name, p in trained(model).items()}
    spoilt = [name for name, weight in held.items() if not weight.isfinite().all()]
    if spoilt:
        raise RunFailed(f"{len(spoilt)} trained weights are not finite numbers after the last step (first {spoilt[0]})")
