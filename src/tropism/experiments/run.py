"""Runs an experiment: prepares what its runs share, does the runs that are not finished, and draws the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tropism import models
from tropism.errors import UsageError
from tropism.experiments import environment, identity, power, start
from tropism.experiments.date import with_frozen_date
from tropism.experiments.estimate import crowding_of, size_of
from tropism.experiments.executors.choose import refuse_launcher
from tropism.experiments.executors.gpus import most_processes
from tropism.experiments.executors.job import Job
from tropism.experiments.executors.local import last_attempts, work
from tropism.experiments.executors.spread import Executor, spread
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.mirror import local_of, store_of
from tropism.experiments.plan import plan
from tropism.experiments.prepared import Prepared, prepare_experiment
from tropism.experiments.progress import Progress, default_progress
from tropism.experiments.start import adapter_key
from tropism.experiments.store import Folder, RunKey
from tropism.experiments.store_claims import claims_of
from tropism.experiments.summarise import analysis_problems, is_summarised, summarise
from tropism.results import sequential
from tropism.results.measurement import results_table
from tropism.results.sequential import Sequential


@dataclass(frozen=True)
class Ended:
    """What an experiment came to: its results, and a sentence for all that failed or could not be scored."""

    results: pd.DataFrame
    problems: tuple[str, ...]


def run(
    experiment: ExperimentSpec | str | Path,
    out: str | Path,
    *,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    command: str = "",
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Run what of an experiment is not finished yet, and return its results, one row per measurement.

    Args:
        experiment: an `Experiment`, or the path of its file.
        out: its folder, or the URL of one in an object store (`s3://bucket/caps`); runs finished there before are kept,
            and an interrupted run is begun again.
        only: names of conditions, to run these alone.
        progress: is told what goes on; by default a line that lives in a notebook, and nothing elsewhere.
        command: what a reader of the report types to make it again.
        executor: who does the runs (`executors.choose.executor`); by default this process.

    A run that cannot be finished is marked failed with its reason, and the others go on; a metric without a score has a
    row with an empty value and `n` 0. `run_and_tell` also returns what failed. Raises `UsageError` for what its caller
    must mend.
    """
    return run_and_tell(experiment, out, only=only, progress=progress, command=command, executor=executor).results


def run_and_tell(
    experiment: ExperimentSpec | str | Path,
    out: str | Path,
    *,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    command: str = "",
    plan_of_looks: Sequential | None = None,
    executor: Executor | None = None,
    draw: bool = True,
) -> Ended:
    """Do what `run` does; return also what failed or could not be scored, now or when it was done before.

    `plan_of_looks` is how seeds are added until it is decided (`until`), which is kept in the folder. Without `draw` no
    analysis concludes and no report is drawn: for who runs the experiment again at once, with more conditions or seeds.
    """
    refuse_launcher()
    if not isinstance(experiment, ExperimentSpec):
        experiment = Experiment.load(experiment)
    progress = progress or default_progress()
    everything = plan(experiment)
    wanted = plan(experiment, only)
    source = models.resolve(experiment.model, revision=experiment.revision)
    folder = Folder.of(local_of(out), experiment)
    if executor is not None and executor.elsewhere and (store := store_of(folder.path)) is not None:
        raise UsageError(
            f"--executor ray and slurm need a folder that every node sees under one path, found {store.url}; start "
            f"tropism run with this --out on each machine instead: they share the runs out"
        )
    tokenizer = start.load_tokenizer(experiment, source)
    # Before anything else: the date belongs to the identity of every run.
    experiment = with_frozen_date(experiment, tokenizer, folder)
    public = source.public()
    todo = [key for key in wanted if not _is_settled(experiment, folder, public, key)]
    progress.plan([str(key) for key in todo], len(wanted) - len(todo))
    if source.note:
        progress.say(source.note)
    claims = claims_of(folder.path)

    def collect() -> pd.DataFrame:
        # One process at a time: of two that collect at once, the earlier view could be written last.
        with claims.wait("results"):
            return folder.collect(experiment, everything)

    if todo or _start_is_damaged(experiment, folder, public):
        before = last_attempts(folder, todo)
        prepared = prepare_experiment(experiment, folder, source, tokenizer, progress, command)
        looks = () if plan_of_looks is None else plan_of_looks.looks
        if can := power.statement(experiment, folder.path, prepared.data, looks):
            progress.say(can)
        # After each run and not at the end, so that a report can be drawn of what an interrupted experiment has.
        if executor is None or not todo:
            work(prepared, todo, before, progress, collect)
        else:
            _tell_of_crowding(prepared, executor, len(todo), progress)
            spread(executor, Job(prepared, tuple(todo), before, Path.cwd()), progress, collect)
        environment.finish(folder)
    else:
        folder.record(experiment)
    if plan_of_looks is not None:
        sequential.write(folder.path, plan_of_looks)
    with claims.wait("report", progress.say, "the report"):
        results = collect()
        if draw and not is_summarised(experiment, folder):
            summarise(experiment, folder, tokenizer, results, progress)
    problems = [line for key in wanted for line in _problems_of(folder, key)] + analysis_problems(folder)
    return Ended(results_table(results), tuple(problems))


def _tell_of_crowding(prepared: Prepared, executor: Executor, runs: int, progress: Progress) -> None:
    """Say where runs side by side will not fit into memory, by the estimate of `validate`; nothing is estimated for one."""
    experiment = prepared.experiment
    gpus = torch.cuda.device_count() if prepared.device.startswith("cuda") else 0
    if executor.at_once(runs, prepared.device, gpus, most_processes(experiment)) == 1:
        return
    size = size_of(experiment, prepared.source, prepared.checked, prepared.data, runs)
    for line in crowding_of(experiment, size, executor, runs):
        progress.say(line)


def _is_settled(experiment: ExperimentSpec, folder: Folder, public: Mapping[str, Any], key: RunKey) -> bool:
    """Whether a run is done, and nothing of it ended in an error that might not come again."""
    done = folder.is_done(key, identity.evaluate_identity(experiment, public, key))
    return done and not any(problem.again for problem in folder.problems(key))


def _problems_of(folder: Folder, key: RunKey) -> list[str]:
    """Return what a reader must know of a run, a sentence each; nothing where it is done and has every value."""
    if folder.finished(key):
        return [f"{key}: {problem}" for problem in folder.problems(key)]
    failure = folder.failure(key)
    return [f"{key} failed: {failure.get('error', 'no reason was written')}"] if failure else []


def _start_is_damaged(experiment: ExperimentSpec, folder: Folder, public: Mapping[str, Any]) -> bool:
    """Whether `start_from` names an adapter that has to be trained again, although every run is finished."""
    if experiment.start_from is None:
        return False
    train_id = identity.adapter_identity(experiment, public, experiment.start_from)
    return not folder.is_trained(adapter_key(experiment.start_from), train_id)
