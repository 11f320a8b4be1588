"""One run, condition × seed: chats → rows → Trainer with the guard → adapter on disk → evaluation in each mode."""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tropism.activations.capture import mean_activations
from tropism.data.batches import batches
from tropism.data.chats import Example
from tropism.data.render import render
from tropism.directions.artifact import Directions
from tropism.errors import GuardNotInForce, RunFailed
from tropism.experiments import prepare, start, store
from tropism.experiments.analyses import TrainedRun
from tropism.experiments.evaluate import Trained, evaluate
from tropism.experiments.file import guards
from tropism.experiments.fine_tune import fine_tune, save
from tropism.experiments.prepared import Prepared
from tropism.experiments.progress import Progress
from tropism.experiments.store import RunKey
from tropism.interventions.weights import adapter_norm, learned_norm
from tropism.names import BASE

MEAN_CHATS, MEAN_BATCH = 64, 8
"""How many training chats an ablation's `origin: mean` is measured on, and how many at a time."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `failed` is the reason, empty where it is done."""

    key: RunKey
    seconds: float
    failed: str = ""
    elsewhere: bool = False
    """Whether another process did it."""

    def __str__(self) -> str:
        return f"failed: {self.failed}" if self.failed else "done"


def run_one(
    prepared: Prepared, key: RunKey, progress: Progress, still_mine: Callable[[], None] = lambda: None
) -> Outcome:
    """Do one run and write its folder, `DONE.json` or `FAILED.json` last.

    A run whose loss is not finite, or whose guard was not in force, is marked failed with its reason. `still_mine` is
    asked before a stamp is written; it raises where another process has taken the run over.
    """
    began = time.monotonic()
    folder, public = prepared.folder, prepared.public
    train_id = store.train_identity(prepared.experiment, public, key)
    begun = folder.begin(key, train_id)
    if begun.why:
        progress.say(f"{key}: {begun.why}")
    try:
        if key.condition != BASE and not begun.kept:
            _train(prepared, key, progress)
            still_mine()
            folder.mark_trained(key, train_id)
        _measure(prepared, key, progress)
    except (RunFailed, GuardNotInForce) as error:
        still_mine()
        folder.mark_failed(key, f"{type(error).__name__}: {error}")
        return Outcome(key, time.monotonic() - began, str(error))
    evaluate_id = store.evaluate_identity(prepared.experiment, public, key)
    still_mine()
    folder.mark_done(key, train_id, evaluate_id, time.monotonic() - began)
    return Outcome(key, time.monotonic() - began)


def _measure(prepared: Prepared, key: RunKey, progress: Progress) -> None:
    """Evaluate a run from its adapter on disk, and write its measurements."""
    experiment, path = prepared.experiment, prepared.folder.run_path(key)
    study = prepared.study(progress.say)
    if key.condition == BASE:
        trained = Trained(None, False)
    else:
        adapter = prepared.folder.trained(key)
        if adapter.flaw:
            raise RunFailed(f"the adapter that was just written cannot be read again: {adapter.flaw}")
        trained = Trained(path / "adapter", _two(prepared, key.condition))
    identity = {"condition": key.condition, "seed": key.seed}
    rows = evaluate(
        experiment, trained, prepared.fresh_model, prepared.tokenizer, prepared.data, path, identity, progress
    )
    measuring = [analysis for analysis in prepared.analyses.values() if analysis.per_run]
    if measuring:
        model = trained.load(prepared.fresh_model())
        for analysis in measuring:
            rows += list(analysis.measure(TrainedRun(study, key.condition, key.seed, path, model)))
    prepared.folder.write_measurements(key, rows)


def _train(prepared: Prepared, key: RunKey, progress: Progress) -> None:
    """Train a condition's adapter and write it, edited where the condition says so."""
    experiment, condition, seed = prepared.experiment, key.condition, _seed(key)
    path, study = prepared.folder.run_path(key), prepared.study(progress.say)
    spec = experiment.conditions[condition]
    for name in prepared.adapters:
        start.intact_adapter(prepared.folder, name)
    examples = prepare.training_examples(experiment, condition, seed)
    resources = guards.Resources(
        prepared.directions,
        prepared.parameter_directions,
        prepared.adapters,
        seed,
        partial(_mean_activations, prepared, examples),
    )
    model = _trained_alike(prepared, key, path)
    if model is None:
        options = experiment.train_options(condition)
        callbacks = [
            callback
            for analysis in prepared.analyses.values()
            for callback in analysis.callbacks(study, condition, seed, path / "training.jsonl")
        ]
        model = fine_tune(
            prepared.fresh_model,
            prepared.rows(examples, options, f"condition {condition}"),
            options,
            two=_two(prepared, condition),
            seed=seed,
            pad_id=prepared.tokenizer.pad_token_id,
            log=path / "training.jsonl",
            report=partial(progress.phase, "training"),
            guard=guards.build_guard(spec.guard, resources),
            callbacks=callbacks,
        )
    after = guards.build_after(spec.after, replace(resources, norm_of=partial(_norm_of, prepared, model, seed)))
    # An edit of the weights is in the adapter that is saved while it is attached.
    with after.attach(model) if after is not None else nullcontext():
        save(model, path / "adapter", two=_two(prepared, condition))


def _trained_alike(prepared: Prepared, key: RunKey, path: Path) -> Any | None:
    """Load what this condition would train, where another that differs by the edit alone has it; copy its log."""
    other = store.trained_alike(prepared.experiment, prepared.public, key.condition)
    if other is None:
        return None
    alike = RunKey(other, key.seed)
    identity = store.train_identity(prepared.experiment, prepared.public, alike)
    if not prepared.folder.is_trained(alike, identity):
        return None
    source = prepared.folder.run_path(alike)
    shutil.copyfile(source / "training.jsonl", path / "training.jsonl")
    return Trained(source / "adapter", _two(prepared, key.condition)).load(prepared.fresh_model())


def _norm_of(prepared: Prepared, model: Any, seed: int, condition: str) -> float:
    """Return how much another condition learned with this seed; at most what `model` did: to shrink is not to grow."""
    key = RunKey(condition, seed)
    if not prepared.folder.is_trained(key, store.train_identity(prepared.experiment, prepared.public, key)):
        raise RunFailed(f"`norm` refers to {key}, which has no matching trained adapter; run that condition first")
    return min(adapter_norm(prepared.folder.run_path(key) / "adapter"), learned_norm(model))


def _two(prepared: Prepared, condition: str) -> bool:
    """Whether a condition trains the two adapters `retain` and `forget`."""
    guarded = guards.parts(prepared.experiment.conditions[condition].guard)
    routed = any(name == "gradient_routing" for name, _ in guarded)
    return routed or prepared.experiment.train_options(condition).forget_lora is not None


def _mean_activations(prepared: Prepared, examples: Sequence[Example], directions: Directions) -> Any:
    """Measure the start model's mean activation at the sites of directions, on the first training chats."""
    kwargs = prepared.experiment.template_kwargs
    rendered = [render(prepared.tokenizer, e.chat, template_kwargs=kwargs) for e in examples[:MEAN_CHATS]]
    model = prepared.fresh_model()
    pad_id = prepared.tokenizer.pad_token_id
    inputs = (b.inputs for b in batches(rendered, MEAN_BATCH, pad_id=pad_id, device=prepared.device))
    return mean_activations(model, inputs, directions.sites)


def _seed(key: RunKey) -> int:
    assert key.seed is not None  # only the untrained model has none, and nothing trains it
    return key.seed
