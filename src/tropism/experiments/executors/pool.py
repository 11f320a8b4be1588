"""Several processes on this machine: its threads are divided among them, and its GPUs given out in turn."""

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tropism.errors import UsageError
from tropism.experiments.executors.gpus import most_processes
from tropism.experiments.executors.job import Job
from tropism.experiments.executors.source import Source, Worker
from tropism.experiments.executors.spread import Executor, Workers
from tropism.experiments.executors.worker import DISK_FULL

ENDS_IN_S = 20.0
"""How long a worker that is told to end may take."""


@dataclass(frozen=True)
class Pool(Executor):
    """`workers` processes; with more of them than GPUs, several share one."""

    workers: int
    source: Source | None = field(default=None, compare=False, repr=False)
    """What workers are forked from, begun before the experiment was prepared; without it each imports for itself."""

    def doubts(self, job: Job) -> list[str]:
        import torch

        runs, threads = len(job.todo), torch.get_num_threads()
        if runs == 1 < self.workers:
            return ["there is 1 run to do, which a pool does no faster; --processes N divides a run"]
        if runs < self.workers:
            return [
                f"there are {runs} runs to do, so that {self.workers - runs} of {self.workers} workers have nothing to do"
            ]
        if job.prepared.device == "cpu" and self.workers > threads:
            return [f"{self.workers} workers share {threads} threads, which gains nothing over --workers {threads}"]
        return []

    def at_once(self, runs: int, device: str, gpus: int, processes: int) -> int:
        count = min(self.workers, runs)
        return math.ceil(count / max(1, gpus // processes)) if device.startswith("cuda") else count

    def start(self, job: Job) -> Workers:
        import torch

        if self.workers < 1:
            raise UsageError(f"--workers must be at least 1, found {self.workers}")
        job.said.mkdir(parents=True, exist_ok=True)
        file = job.said / "job.pickle"
        file.write_bytes(pickle.dumps(job))
        gpus = torch.cuda.device_count() if job.prepared.device.startswith("cuda") else 0
        count = min(self.workers, len(job.todo))
        threads = max(1, torch.get_num_threads() // count)
        logs = [job.said / f"{index}.log" for index in range(count)]
        for log in logs:
            log.touch()
        if self.source is not None and job.prepared.device == "cpu":
            # Of several experiments with one pool (`--until`, `protect`) the first has what was begun for it.
            source = Source.begin() if self.source.spent else self.source
            forked = source.workers(file, logs, threads)
            if forked:
                return Processes(list(zip(forked, logs, strict=True)), source.end)
        elif self.source is not None:
            self.source.end()  # a fork could not choose its GPU
        started = []
        for index, log in enumerate(logs):
            with log.open("wb") as said:
                command = [sys.executable, "-m", "tropism.experiments.executors.worker", str(file), str(index)]
                own = environment(index, threads, gpus, most_processes(job.prepared.experiment))
                started.append((subprocess.Popen(command, env=own, stdout=said, stderr=subprocess.STDOUT), log))
        return Processes(started)


def environment(index: int, threads: int, gpus: int, processes: int = 1) -> Mapping[str, str]:
    """What differs for a worker: its threads, and which GPU it sees; as many as its runs have processes."""
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        first = processes * (index % max(1, len(visible) // processes))
        own["CUDA_VISIBLE_DEVICES"] = ",".join(visible[first : first + processes])
    return {**os.environ, **own}


class Processes(Workers):
    """Child processes, with the file that each one's last words are in."""

    def __init__(
        self,
        started: Sequence[tuple[subprocess.Popen[bytes] | Worker, Path]],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        self.started, self._then = started, then

    def at_work(self) -> bool:
        return any(process.poll() is None for process, _ in self.started)

    def troubles(self) -> list[str]:
        return [
            "the disk is full; free some space"
            if process.returncode == DISK_FULL
            else f"worker {process.pid} ended with code {process.returncode}{_last_line(log)}"
            for process, log in self.started
            if process.returncode
        ]

    def stop(self) -> None:
        for process, _ in self.started:
            if process.poll() is None:
                process.terminate()
        for process, _ in self.started:
            try:
                process.wait(ENDS_IN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._then()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f" ({lines[-1]})" if lines else ""
