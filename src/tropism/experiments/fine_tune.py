"""One LoRA fine-tune of an experiment: a fresh model, its adapter or two, and `training.supervised` with the guard."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache
from peft import LoraConfig, PeftModel, get_peft_model

from tropism.adapters.targets import check_entries, resolve_targets
from tropism.adapters.whole import with_own_weights
from tropism.errors import RunFailed
from tropism.experiments.checkpoints import RunCheckpoints
from tropism.experiments.problems import SMALLER, out_of_memory
from tropism.experiments.store import TRAINER
from tropism.experiments.trained_together import Training, train_together
from tropism.interventions.base import Intervention
from tropism.interventions.two_adapters import save_adapters, two_adapters
from tropism.training.checkpoints import Checkpoints, load_trained
from tropism.training.options import LoraOptions, TrainOptions
from tropism.training.randomness import isolated_randomness
from tropism.training.supervised import Report, Row, train
from tropism.training.trackers import Tracking


def fine_tune(
    fresh_model: Callable[[], Any],
    rows: Sequence[Row],
    options: TrainOptions,
    *,
    two: bool,
    seed: int,
    pad_id: int,
    log: Path,
    report: Report,
    guard: Intervention | None = None,
    callbacks: Callable[[], Sequence[Any]] = tuple,
    tracking: Tracking | None = None,
    checkpoints: RunCheckpoints | None = None,
    evaluate_on: Sequence[Row] = (),
) -> tuple[Any, TrainOptions]:
    """Return the model with its adapter (with `two`, the adapters `retain` and `forget`), trained; the log is `log`.

    With `batch_size: auto` every attempt begins anew from the seed; the options returned are those that fitted. Goes on
    from the last of `checkpoints` where there is one. Raises `RunFailed` where memory runs out, with what was tried and
    what to set.
    """
    tried = []
    found = None if checkpoints is None else checkpoints.latest()
    attempts = options.attempts()
    if found is not None:
        # Larger batches did not fit before it was interrupted.
        attempts = [one for one in attempts if one.first_batch <= found.batch[0]]
    for attempt in attempts:
        made = callbacks()
        kept = None
        if checkpoints is not None and (attempt.save_steps is not None or found is not None):
            kept = Checkpoints(
                checkpoints.folder, partial(checkpoints.seal, options=attempt), None if found is None else found.path
            )
        with isolated_randomness(seed):
            model = _train_once(
                fresh_model, rows, attempt, two, seed, pad_id, log, report, guard, made, tracking, kept, evaluate_on
            )
        shutil.rmtree(log.parent / TRAINER, ignore_errors=True)
        if model is not None:
            return model, attempt
        # Here and not where the error was caught: its traceback held the model that did not fit.
        clear_device_cache(garbage_collection=True)
        if checkpoints is not None:
            checkpoints.clear()
            found = None
        tried.append(f"{attempt.first_batch} × {attempt.accumulation}")
    raise RunFailed(
        f"out of memory in training with a batch of {', '.join(tried)} (examples per forward pass × accumulation), "
        f"checkpointing {'on' if options.checkpointing else 'off'}; {SMALLER}"
    )


def _train_once(
    fresh_model: Callable[[], Any],
    rows: Sequence[Row],
    options: TrainOptions,
    two: bool,
    seed: int,
    pad_id: int,
    log: Path,
    report: Report,
    guard: Intervention | None,
    callbacks: Sequence[Any],
    tracking: Tracking | None,
    checkpoints: Checkpoints | None,
    evaluate_on: Sequence[Row],
) -> Any | None:
    """Return the trained model; None where memory ran out."""
    try:
        adapted = partial(_adapted, fresh_model, options, two)
        if options.processes > 1:
            given = Training(
                adapted, rows, options, seed, pad_id, log, guard, tuple(callbacks), tracking, checkpoints, evaluate_on
            )
            learned = train_together(given, report)
            model = adapted()
            load_trained(model, learned)
            return model
        model = adapted()
        train(
            model,
            rows,
            options,
            pad_id=pad_id,
            seed=seed,
            log=log,
            guard=guard,
            report=report,
            callbacks=callbacks,
            tracking=tracking,
            checkpoints=checkpoints,
            evaluate_on=evaluate_on,
        )
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        return None
    return model


def _adapted(fresh_model: Callable[[], Any], options: TrainOptions, two: bool) -> Any:
    return with_adapters(fresh_model(), options, two=two)


def with_adapters(model: Any, options: TrainOptions, *, two: bool) -> Any:
    """Return the model with one trainable LoRA adapter, with `retain` and `forget`, or with every weight trainable."""
    if options.adapter == "full":
        return with_own_weights(model)
    if two:
        return two_adapters(model, _lora(model, options.lora), _lora(model, options.forget_lora or options.lora))
    check_lora(model, options.lora)  # two adapters are checked by what makes them
    return get_peft_model(model, _lora(model, options.lora))


def check_lora(model: Any, options: LoraOptions) -> None:
    """Raise `ModelError` for an option that names what the model does not have."""
    check_entries(
        model,
        target_modules=options.target_modules,
        modules_to_save=options.modules_to_save,
        target_parameters=options.target_parameters,
        layers_to_transform=options.layers_to_transform or (),
    )


def save(model: Any, path: Path, *, two: bool) -> None:
    """Write the adapter (or both) in PEFT's format, or a model whose weights were trained in transformers'."""
    if two:
        save_adapters(model, path)
    elif not isinstance(model, PeftModel):
        model.save_pretrained(str(path))
    else:
        model.save_pretrained(str(path), save_embedding_layers=False)


def _lora(model: Any, options: LoraOptions) -> LoraConfig:
    return LoraConfig(
        r=options.r,
        lora_alpha=options.effective_alpha,
        lora_dropout=options.dropout,
        target_modules=resolve_targets(model, options.target_modules),
        use_rslora=options.rslora,
        use_dora=options.dora,
        bias=options.bias,
        layers_to_transform=options.layers_to_transform,
        modules_to_save=options.modules_to_save or None,
        target_parameters=options.target_parameters or None,
        init_lora_weights=True if options.init == "default" else options.init,
        task_type="CAUSAL_LM",
    )
