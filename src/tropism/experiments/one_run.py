"""One run, condition × seed: chats → rows → Trainer with the guard → adapter on disk → evaluation in each mode."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache

from tropism.activations.capture import mean_activations
from tropism.adapters.whole import is_whole
from tropism.data.batches import batches
from tropism.data.render import render
from tropism.directions.artifact import Directions
from tropism.errors import ClaimLost, RunFailed, TropismError
from tropism.experiments import identity, prepare, start
from tropism.experiments.analyses import Analysis, Study, TrainedRun
from tropism.experiments.checkpoints import RunCheckpoints
from tropism.experiments.evaluated_together import evaluate_run
from tropism.experiments.file import guards
from tropism.experiments.fine_tune import fine_tune, save
from tropism.experiments.prepared import Prepared
from tropism.experiments.problems import noted, out_of_memory
from tropism.experiments.progress import Progress
from tropism.experiments.store import RunKey
from tropism.experiments.subject import Trained, subject_of_run, trains_two
from tropism.interventions.weights import adapter_norm, learned_norm
from tropism.results.problem import Problem
from tropism.training.trackers import Tracking

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
    problems: Sequence[Problem] = ()
    """What it has no value of, although it is done."""

    def __str__(self) -> str:
        if self.failed:
            return f"failed: {self.failed}"
        return "; ".join(["done", *(f"without {problem}" for problem in self.problems)])


def run_one(
    prepared: Prepared, key: RunKey, progress: Progress, still_mine: Callable[[], None] = lambda: None
) -> Outcome:
    """Do one run and write its folder, `DONE.json` or `FAILED.json` last.

    A run that cannot be finished (its loss is not finite, its guard was not in force, memory ran out) is marked failed
    with its reason. A metric or an analysis that cannot be computed is noted in `DONE.json`, and the rest of the run is
    kept. `still_mine` is asked before a stamp is written; it raises where another process has taken the run over.
    """
    began = time.monotonic()
    folder, public = prepared.folder, prepared.public
    train_id = identity.train_identity(prepared.experiment, public, key)
    begun = folder.begin(key, train_id)
    if begun.why:
        progress.say(f"{key}: {begun.why}")
    try:
        if key.seed is not None and not begun.kept:
            fitted = _train(prepared, key, progress)
            still_mine()
            folder.mark_trained(key, train_id, **fitted)
        problems, cut = _measure(prepared, key, progress)
        prepared.held.check("this run")
    except ClaimLost:
        raise
    except (TropismError, MemoryError, RuntimeError, OSError) as error:
        failed = _failure(error)
        if failed is None:
            raise
        kind = type(error).__name__
    else:
        evaluate_id = identity.evaluate_identity(prepared.experiment, public, key)
        still_mine()
        folder.mark_done(key, train_id, evaluate_id, time.monotonic() - began, problems, cut)
        return Outcome(key, time.monotonic() - began, problems=problems)
    # Past the `except`, whose traceback held what did not fit in memory.
    clear_device_cache(garbage_collection=True)
    still_mine()
    folder.mark_failed(key, f"{kind}: {failed}")
    return Outcome(key, time.monotonic() - began, failed)


def _failure(error: Exception) -> str | None:
    """Return why a run failed; None for an error that is not the run's, but ours."""
    if isinstance(error, TropismError):
        return str(error)
    if out_of_memory(error):
        return (
            "out of memory outside of training, whose adapter is kept; set a smaller generate.batch_size, or a smaller "
            "batch_size of the scorer or the analysis"
        )
    return None


def _measure(
    prepared: Prepared, key: RunKey, progress: Progress
) -> tuple[list[Problem], Mapping[str, tuple[int, int]]]:
    """Evaluate a run from its adapter on disk, and write its measurements.

    Returns what could not be measured, and how many answers were cut off, of how many, by evaluation set.
    """
    experiment, path = prepared.experiment, prepared.folder.run_path(key)
    study = prepared.study(progress.say)
    subject = subject_of_run(prepared, key)
    found = evaluate_run(prepared, key, subject, progress)
    rows, problems = found.measurements, found.problems
    measuring = {name: analysis for name, analysis in prepared.analyses.items() if analysis.per_run}
    if subject.endpoint is not None:
        for name in measuring:
            progress.say(
                f"{key}: the analysis {name} is left out: it reads the model itself, which is behind an endpoint"
            )
        measuring = {}
    model = None
    if measuring.keys() & prepared.working.keys():
        model = subject.trained.load(subject.fresh_model())
    for name, analysis in measuring.items():
        if name in prepared.dropped:
            problems.append(Problem("analysis", name, prepared.dropped[name], again=True))
            continue
        with noted(problems, "analysis", name):
            if key.condition in experiment.conditions and experiment.conditions[key.condition].model is not None:
                _check_directions(prepared, analysis, model)
            of_run = replace(study, tokenizer=subject.tokenizer)
            rows += list(analysis.measure(TrainedRun(of_run, key.condition, key.seed, path, model)))
    prepared.folder.write_measurements(key, rows)
    return problems, found.cut


def _check_directions(prepared: Prepared, analysis: Analysis, model: Any) -> None:
    """Raise `DirectionsMismatch` where a whole model is of another architecture than the directions that are read in it."""
    for name in analysis.reads_directions(prepared.experiment):
        prepared.directions[name].check_model(model)


def _train(prepared: Prepared, key: RunKey, progress: Progress) -> dict[str, int]:
    """Train a condition's adapter and write it, edited where the condition says so; return the batch that it took."""
    experiment, condition, seed = prepared.experiment, key.condition, _seed(key)
    path, study = prepared.folder.run_path(key), prepared.study(progress.say)
    spec = experiment.conditions[condition]
    for name in prepared.adapters:
        start.intact_adapter(prepared.folder, name)
    resources = guards.Resources(
        prepared.directions,
        prepared.parameter_directions,
        prepared.adapters,
        seed,
        partial(_mean_activations, prepared, key),
    )
    model, fitted = _trained_alike(prepared, key, path), dict[str, int]()
    if model is None:
        options = prepared.settled.options(experiment.train_options(condition))
        if options.processes > 1:
            prepared.held.release()  # each process loads its own
        rendered = prepared.rendered.condition(condition, seed)
        # What is kept whole beside weights that are divided would undo the dividing.
        fresh = prepared.held.given_away if options.parallel == "fsdp2" else prepared.fresh_model
        model, taken = fine_tune(
            prepared.settled.to_train(fresh, options.longest_row(rendered.record.longest)),
            rendered.rows,
            options,
            two=trains_two(prepared, condition),
            seed=seed,
            pad_id=prepared.tokenizer.pad_token_id,
            log=path / "training.jsonl",
            report=partial(progress.phase, "training"),
            guard=guards.build_guard(spec.guard, resources),
            callbacks=partial(_callbacks, prepared, study, key),
            tracking=Tracking(experiment.name, str(key), prepared.folder.path / "tracking"),
            checkpoints=RunCheckpoints(path, identity.train_identity(experiment, prepared.public, key)),
            evaluate_on=prepared.evaluated_rows(options),
        )
        fitted = {"batch_size": taken.first_batch, "accumulation": taken.accumulation}
        if taken.first_batch != options.first_batch:
            progress.say(
                f"{key}: a batch of {options.first_batch} does not fit in memory; trained with {taken.first_batch} and an "
                f"accumulation of {taken.accumulation}"
            )
    after = guards.build_after(spec.after, replace(resources, norm_of=partial(_norm_of, prepared, model, seed)))
    # An edit of the weights is in the adapter that is saved while it is attached.
    with after.attach(model) if after is not None else nullcontext():
        save(model, path / "adapter", two=trains_two(prepared, condition))
    if is_whole(path / "adapter"):
        # A model of its own, which whoever loads it by its folder looks for a tokenizer in.
        prepared.tokenizer.save_pretrained(str(path / "adapter"))
    return fitted


def _callbacks(prepared: Prepared, study: Study, key: RunKey) -> list[Any]:
    """Return what the analyses read while a run trains."""
    log = prepared.folder.run_path(key) / "training.jsonl"
    found: list[Any] = []
    for analysis in prepared.working.values():
        found += analysis.callbacks(study, key.condition, _seed(key), log)
    return found


def _trained_alike(prepared: Prepared, key: RunKey, path: Path) -> Any | None:
    """Load what this condition would train, where another that differs by the edit alone has it; copy its log."""
    other = identity.trained_alike(prepared.experiment, prepared.public, key.condition)
    if other is None:
        return None
    alike = RunKey(other, key.seed)
    train_id = identity.train_identity(prepared.experiment, prepared.public, alike)
    if not prepared.folder.is_trained(alike, train_id):
        return None
    source = prepared.folder.run_path(alike)
    shutil.copyfile(source / "training.jsonl", path / "training.jsonl")
    return Trained(source / "adapter", trains_two(prepared, key.condition)).load(prepared.fresh_model())


def _norm_of(prepared: Prepared, model: Any, seed: int, condition: str) -> float:
    """Return how much another condition learned with this seed; at most what `model` did: to shrink is not to grow."""
    key = RunKey(condition, seed)
    if not prepared.folder.is_trained(key, identity.train_identity(prepared.experiment, prepared.public, key)):
        raise RunFailed(f"`norm` refers to {key}, which has no matching trained adapter; run that condition first")
    return min(adapter_norm(prepared.folder.run_path(key) / "adapter"), learned_norm(model))


def _mean_activations(prepared: Prepared, key: RunKey, directions: Directions) -> Any:
    """Measure the start model's mean activation at the sites of directions, on the first training chats of a run."""
    experiment, condition = prepared.experiment, prepared.experiment.conditions[key.condition]
    examples = prepare.stream_data(experiment.train_data(key.condition), _seed(key), condition.system_prompt)
    rendered = [
        render(prepared.tokenizer, example.content, template_kwargs=experiment.template_kwargs)
        for example in islice(examples, MEAN_CHATS)
    ]
    model = prepared.fresh_model()
    pad_id = prepared.tokenizer.pad_token_id
    inputs = (b.inputs for b in batches(rendered, MEAN_BATCH, pad_id=pad_id, device=prepared.device))
    return mean_activations(model, inputs, directions.sites)


def _seed(key: RunKey) -> int:
    assert key.seed is not None  # only the untrained model has none, and nothing trains it
    return key.seed
