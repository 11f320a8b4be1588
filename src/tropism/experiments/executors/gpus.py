"""How many runs a GPU, or a machine without one, has at a time, and whether their memory is there."""

from collections.abc import Mapping
from typing import Any

from tropism.errors import UsageError
from tropism.experiments.file.spec import ExperimentSpec

GIB = 2**30


def most_processes(experiment: ExperimentSpec) -> int:
    """In how many processes the experiment's largest run trains."""
    trained = [experiment.train_options(name).processes for name in experiment.trained]
    return max([experiment.train.processes, *trained])


def crowding(runs: int, each: int, shared: int, room: int, where: str) -> str:
    """Say that `runs` at a time take more than the memory that is there; empty where they fit, or are one.

    Args:
        each: bytes of one of them.
        shared: how many of these bytes they have in common.
        room: bytes that are there.

    >>> crowding(4, 30 * GIB, 0, 80 * GIB, "a GPU")
    'a GPU has 80.0 GiB, and 4 at a time will take about 120.0 by the estimate of 30.0 each: 2 would fit'
    """
    needed = shared + runs * (each - shared)
    if runs < 2 or needed <= room:
        return ""
    fit = max(0, (room - shared) // max(1, each - shared))
    return (
        f"{where} has {room / GIB:.1f} GiB, and {runs} at a time will take about {needed / GIB:.1f} by the estimate of "
        f"{each / GIB:.1f} each: {fit or 'none'} would fit"
    )


def gpus_of_a_task(given: Mapping[str, Any], processes: int) -> float:
    """How many GPUs a task of Ray is given: what `--resource num_gpus` says, by default one a process.

    Raises `UsageError` where that is none, or a run's processes would have less than one each.
    """
    asked = float(given.get("num_gpus", processes))
    if asked <= 0:
        raise UsageError(
            f"--resource num_gpus must be above 0 on device cuda, found {asked:g}: Ray hides the GPUs from a task that asks for "
            f"none; drop it, or set device: cpu"
        )
    if processes > 1 and asked < processes:
        raise UsageError(
            f"--resource num_gpus must be at least train.processes, {processes}, each of which has a GPU, found {asked:g}"
        )
    return asked


def check_gpus_per_node(given: Mapping[str, Any], processes: int) -> None:
    """Raise `UsageError` where a job of Slurm asks for fewer GPUs than its run has processes."""
    asked = given.get("gpus_per_node")
    if isinstance(asked, int) and asked < processes:
        raise UsageError(
            f"--resource gpus_per_node must be at least train.processes, {processes}, each of which has a GPU, found {asked}"
        )
