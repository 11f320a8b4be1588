"""A Ray cluster: each run is a task with its resources, begun where there is room and again where a node was lost.

The nodes share the results folder (a network file system), as the driver sees it.
"""

import logging
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tropism.errors import UsageError
from tropism.experiments.executors.gpus import gpus_of_a_task, most_processes
from tropism.experiments.executors.job import Job, do
from tropism.experiments.executors.spread import Executor, Workers
from tropism.experiments.store import RunKey
from tropism.optional import require

log = logging.getLogger("tropism")

ANSWERS_IN_S = 10.0
"""How long a cluster's address may take to answer."""
RETRIES = 3
"""How often a run is begun again after its node was lost."""


@dataclass(frozen=True)
class Ray(Executor):
    """The cluster at `address` (by default one on this machine alone); `resources` are those of a task: `num_cpus`,
    `num_gpus` (0.25 lets four runs share a GPU), `memory`.
    """

    elsewhere: ClassVar[bool] = True

    address: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)

    def at_once(self, runs: int, device: str, gpus: int, processes: int) -> int:
        if not device.startswith("cuda"):
            return 1  # what other nodes have is not known here
        return min(runs, max(1, int(1 / gpus_of_a_task(self.resources, processes))))

    def start(self, job: Job) -> Workers:
        ray: Any = require("ray", extra="ray", purpose="--executor ray")
        _connect(ray, self.address)
        given: dict[str, float] = {}
        if job.prepared.device.startswith("cuda"):
            given = {"num_gpus": gpus_of_a_task(self.resources, most_processes(job.prepared.experiment))}
        try:
            task = ray.remote(_do).options(max_retries=RETRIES, **{"num_cpus": 1, **given, **self.resources})
        except (ValueError, TypeError) as error:
            raise UsageError(f"--executor ray: {str(error).strip().splitlines()[0]}") from None
        _tell_of_no_room(ray.nodes(), {"num_cpus": 1, **given, **self.resources})
        held, started = ray.put(job), dict[RunKey, Any]()
        for key in job.todo:
            # A task whose arguments are other tasks' results begins after them.
            started[key] = task.remote(held, key, *(started[other] for other in job.needs(key) if other in started))
        return _Tasks(ray, started)


def _connect(ray: Any, address: str | None) -> None:
    """Join the cluster; raises `UsageError` where nothing answers."""
    if ray.is_initialized():
        return
    alone = address in (None, "auto", "local")
    if not alone and not re.fullmatch(r"(ray://)?.+:\d{1,5}", str(address)):
        raise UsageError(f"--address must be HOST:PORT of a Ray cluster, as in head:6379, found {address!r}")
    try:
        if not alone:
            # Asked here first: Ray goes on asking an address that does not answer for minutes.
            host, _, port = str(address).removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=ANSWERS_IN_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        raise UsageError(
            f"no Ray cluster answers at --address {address}: {str(error).strip().splitlines()[0]}; start one with ray start "
            f"--head, or leave --address out to use this machine"
        ) from None


def _tell_of_no_room(nodes: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]) -> None:
    """Warn where no node that is there now could ever do a run: Ray would wait without a word, maybe for one that comes."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    wanted = {named: float(asked[name]) for name, named in names.items() if asked.get(name)}
    there = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(one.get(name, 0) >= count for name, count in wanted.items()) for one in there):
        most = {name: max((one.get(name, 0) for one in there), default=0) for name in wanted}
        log.warning(
            f"--executor ray: no node has {_shown(wanted)} (the most is {_shown(most)}), so runs wait for one that joins; "
            f"ask for less with --resource"
        )


def _shown(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{count:g} {name}" for name, count in resources.items())


def _do(job: Job, key: RunKey, *_before: Any) -> None:
    """One run, on whichever node Ray has chosen, with as many threads as the task has CPUs."""
    import ray
    import torch

    # Ray leaves an OMP_NUM_THREADS that is set as it is: tasks side by side would each take all the machine's threads.
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    do(job, str(key).replace("/", "-"), [key])


class _Tasks(Workers):
    """Tasks that were handed to Ray."""

    def __init__(self, ray: Any, started: Mapping[RunKey, Any]) -> None:
        self._ray, self._started = ray, started
        self._troubles: list[str] = []

    def at_work(self) -> bool:
        return bool(self._ray.wait(list(self._started.values()), num_returns=len(self._started), timeout=0)[1])

    def troubles(self) -> list[str]:
        """Asked once all have ended."""
        for key, task in self._started.items():
            try:
                self._ray.get(task)
            except self._ray.exceptions.RayError as error:
                self._troubles.append(f"{key}: {str(error).strip().splitlines()[-1]}")
        self._started = {}
        return self._troubles

    def stop(self) -> None:
        for task in self._ray.wait(list(self._started.values()), num_returns=len(self._started), timeout=0)[1]:
            self._ray.cancel(task, force=True)
