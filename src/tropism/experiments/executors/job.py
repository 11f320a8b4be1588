"""What a worker is given: a prepared experiment and its runs, as plain data that another process can read."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tropism.experiments.executors.local import work
from tropism.experiments.plan import needs
from tropism.experiments.prepared import Prepared
from tropism.experiments.progress import Progress
from tropism.experiments.store import RunKey

SAID = ".workers"
"""Below the results folder: a file for each worker, in which it says what it does."""


@dataclass(frozen=True, eq=False)
class Job:
    """The runs that are to be done, and all that a worker needs to do them. It can be pickled."""

    prepared: Prepared
    todo: tuple[RunKey, ...]
    before: Mapping[RunKey, str]
    """How each run had ended when the work was planned, as `local.work` takes it."""
    began_in: Path
    """The working directory, to which the paths in an experiment file are relative."""

    @property
    def said(self) -> Path:
        """Where workers say what they do."""
        return self.prepared.folder.path / SAID

    def needs(self, key: RunKey) -> list[RunKey]:
        """Return the runs of this job that a run must wait for."""
        return [k for k in needs(self.prepared.experiment, self.prepared.public, key) if k in self.todo]


def do(job: Job, worker: str, keys: Sequence[RunKey] | None = None) -> None:
    """Do the runs of a job (or `keys` of them) that no other worker does, and say so in the worker's file."""
    os.chdir(job.began_in)
    if job.prepared.experiment.scorers:
        from tropism.evals.scorers.registry import register_file

        register_file(job.prepared.experiment.scorers)
    job.said.mkdir(parents=True, exist_ok=True)
    said = Said(job.said / f"{worker}.jsonl")
    work(job.prepared, job.todo if keys is None else keys, job.before, said, _nothing, one_of_many=True)


class Said(Progress):
    """Writes what a worker says into a file, a line each."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def _write(self, what: str, *said: Any) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([what, *said]) + "\n")

    def say(self, line: str) -> None:
        self._write("say", line)

    def finish(self, name: str, seconds: float, outcome: str) -> None:
        self._write("finish", name, seconds, outcome)


def _nothing() -> None:
    """The results are collected by the process that started the workers."""
