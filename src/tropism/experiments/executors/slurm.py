"""A cluster that Slurm manages, by way of submitit: an array of jobs that share the results folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tropism.errors import UsageError
from tropism.experiments.executors.gpus import check_gpus_per_node, most_processes
from tropism.experiments.executors.job import Job, do
from tropism.experiments.executors.spread import Executor, Workers
from tropism.optional import require


@dataclass(frozen=True)
class Slurm(Executor):
    """`workers` jobs of one array; `resources` are submitit's parameters (`slurm_partition`, `timeout_min`, ...).

    `cluster` is submitit's: by default Slurm, `local` for processes on this machine.
    """

    elsewhere: ClassVar[bool] = True

    workers: int
    resources: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = "slurm"

    def start(self, job: Job) -> Workers:
        submitit: Any = require("submitit", extra="slurm", purpose="--executor slurm")
        check_gpus_per_node(self.resources, most_processes(job.prepared.experiment))
        job.said.mkdir(parents=True, exist_ok=True)
        try:
            executor = submitit.AutoExecutor(folder=job.said / "slurm", cluster=self.cluster)
            executor.update_parameters(**{"name": "tropism", "timeout_min": 24 * 60, **self.resources})
        except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
            raise UsageError(
                f"--executor slurm: {str(error).strip().splitlines()[0]}; see submitit's parameters"
            ) from None
        with executor.batch():
            jobs = [executor.submit(do, job, f"slurm-{index}") for index in range(min(self.workers, len(job.todo)))]
        return _Jobs(jobs)


class _Jobs(Workers):
    """Jobs that were submitted."""

    def __init__(self, jobs: Sequence[Any]) -> None:
        self._jobs = jobs

    def at_work(self) -> bool:
        return any(not job.done() for job in self._jobs)

    def troubles(self) -> list[str]:
        return [f"job {job.job_id} ended as {job.state}" for job in self._jobs if job.exception() is not None]

    def stop(self) -> None:
        for job in self._jobs:
            if not job.done():
                job.cancel()
