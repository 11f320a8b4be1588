"""Workers on a job: start them, pass on what they say, and see that every run has ended when none of them is left."""

import abc
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from tropism.errors import UsageError
from tropism.experiments.executors.job import Job
from tropism.experiments.progress import Progress

LOOK_S = 0.5
"""How often the workers' files are read."""


class Workers(abc.ABC):
    """Workers that were started."""

    @abc.abstractmethod
    def at_work(self) -> bool:
        """Whether any of them still is."""

    @abc.abstractmethod
    def troubles(self) -> list[str]:
        """Why workers ended that did not end well, a sentence each."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End those that are still at work."""


class Executor(abc.ABC):
    """Starts workers somewhere, on the results folder that they share with this process."""

    elsewhere: ClassVar[bool] = False
    """Whether workers may be on other machines, which must see the folder under the same path."""

    def doubts(self, job: Job) -> list[str]:
        """Where more workers gain nothing on this job, a sentence each."""
        return []

    def at_once(self, runs: int, device: str, gpus: int, processes: int) -> int:
        """How many of so many runs one of `gpus` GPUs has at a time, or this machine where `device` is none.

        Raises `UsageError` where a run's processes would not have a GPU each.
        """
        return 1

    @abc.abstractmethod
    def start(self, job: Job) -> Workers:
        """Start workers that together do the job; raises `UsageError` where none can be started."""


def spread(executor: Executor, job: Job, progress: Progress, after_each: Callable[[], object]) -> None:
    """Have a job done by workers.

    `after_each` is called when runs have ended. Raises `UsageError` where no worker is left and runs are: with what the
    workers ended on, and nothing lost, since each run that has ended is kept and an interrupted one goes on.
    """
    shutil.rmtree(job.said, ignore_errors=True)  # what workers of an earlier command said
    job.prepared.held.release()  # each worker loads its own, maybe onto the same GPU
    for doubt in executor.doubts(job):
        progress.say(doubt)
    workers = executor.start(job)
    told = _Told(job.said, progress)
    try:
        while workers.at_work():
            if told.pass_on():
                after_each()
            time.sleep(LOOK_S)
    finally:
        workers.stop()
    told.pass_on()
    after_each()
    left = [key for key in job.todo if job.prepared.folder.attempt(key) == job.before.get(key, "")]
    if left:
        why = "; ".join(dict.fromkeys(workers.troubles())) or "they gave no reason"
        raise UsageError(
            f"the workers ended and left {len(left)} of {len(job.todo)} runs unfinished ({left[0]} is the first): {why}; what "
            f"is finished is kept, so run the same command again"
        )
    for trouble in dict.fromkeys(workers.troubles()):
        progress.say(f"{trouble}; the others have done its runs")


class _Told:
    """The lines in the workers' files, each passed on once."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._read: dict[Path, int] = {}

    def pass_on(self) -> bool:
        """Pass on what is new; whether a run has ended."""
        ended = False
        for path in sorted(self._folder.glob("*.jsonl")):
            whole, newline, _ = path.read_bytes()[self._read.get(path, 0) :].rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                what, *said = json.loads(line)
                if what == "say":
                    self._progress.say(said[0])
                else:
                    self._progress.finish(*said)
                    ended = True
        return ended
