"""One evaluation, by this process or by several that share it out; in either case the same rows."""

import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from tropism.evals.scorers.registry import register_file
from tropism.experiments.evaluate import Evaluated, evaluate
from tropism.experiments.prepared import Prepared
from tropism.experiments.processes import Tell, Work, do_together
from tropism.experiments.progress import Progress
from tropism.experiments.store import EVALUATOR, RunKey
from tropism.experiments.subject import Subject, subject_of_run
from tropism.experiments.team import ALONE, Team

PATIENCE = timedelta(weeks=1)
"""How long processes wait for the first, which asks judges; where one dies, the process that started them ends the others."""


def evaluate_run(prepared: Prepared, key: RunKey, subject: Subject, progress: Progress) -> Evaluated:
    """Evaluate a run in as many processes as `train.processes` says, where it is transformers here that generates."""
    count = _processes(prepared, key)
    if count == 1 or subject.endpoint is not None or prepared.experiment.generate.backend != "transformers":
        return _evaluate(prepared, key, subject, progress, ALONE)
    prepared.held.release()  # each process loads its own
    together = Evaluation(prepared, key)
    try:
        do_together(together, count, lambda what, *said: getattr(progress, what)(*said))
        found: Evaluated = pickle.loads(together.found.read_bytes())
    finally:
        shutil.rmtree(together.folder, ignore_errors=True)
    return found


def _processes(prepared: Prepared, key: RunKey) -> int:
    trains = key.condition in prepared.experiment.trained
    return prepared.experiment.train_options(key.condition if trains else None).processes


def _evaluate(prepared: Prepared, key: RunKey, subject: Subject, progress: Progress, team: Team) -> Evaluated:
    settled = prepared.settled.experiment(prepared.experiment)
    labels = {"condition": key.condition, "seed": key.seed}
    path = prepared.folder.run_path(key)
    return evaluate(settled, subject, prepared.data, path, labels, progress, team)


@dataclass(frozen=True)
class Evaluation(Work):
    """What each process of one evaluation is given."""

    prepared: Prepared
    key: RunKey

    @property
    def folder(self) -> Path:
        return self.prepared.folder.run_path(self.key) / EVALUATOR

    @property
    def found(self) -> Path:
        """Where the first process leaves what all found."""
        return self.folder / "found.pickle"

    def do(self, rank: int, of: int, tell: Tell) -> None:
        torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        if self.prepared.experiment.scorers:
            register_file(self.prepared.experiment.scorers)
        subject, team = subject_of_run(self.prepared, self.key), Team(rank, of)
        found = _evaluate(self.prepared, self.key, subject, _Telling(tell), team)
        self.prepared.held.check("this run")
        if team.first:
            self.found.write_bytes(pickle.dumps(found))


@dataclass(frozen=True)
class _Telling(Progress):
    """Tells the process that started this one."""

    tell: Tell

    def say(self, line: str) -> None:
        self.tell("say", line)

    def phase(self, what: str, done: int, of: int, values: Mapping[str, float] | None = None) -> None:
        self.tell("phase", what, done, of, values)
