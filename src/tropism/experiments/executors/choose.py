"""From `--executor` and its options to who does the runs; an option that the executor has no use for is an error."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tropism.errors import UsageError
from tropism.experiments.executors.source import Source, can_fork

if TYPE_CHECKING:
    from tropism.experiments.executors.spread import Executor

Name = Literal["local", "pool", "ray", "slurm"]
NEEDS_WORKERS = ("pool", "slurm")

LAUNCHED = (
    "tropism run was started by torchrun or accelerate launch as process {rank} of {world}, and each of them would do every "
    "run; start it once, without the launcher, as tropism run FILE --processes {world} (one run in several processes) or "
    "tropism run FILE --executor pool --workers {world} (several runs at once)"
)


def executor(
    name: Name,
    workers: int | None = None,
    address: str | None = None,
    resources: Mapping[str, Any] | None = None,
    *,
    to_run: bool = True,
) -> "Executor | None":
    """Return the executor of this name; None for this process alone. Without `to_run` nothing is begun for it.

    Raises `UsageError` for an option that the executor does not take, or one that it lacks.
    """
    given = {"--workers": workers, "--address": address, "--resource": resources or None}
    takes = {
        "local": (),
        "pool": ("--workers",),
        "ray": ("--address", "--resource"),
        "slurm": ("--workers", "--resource"),
    }
    for option, value in given.items():
        if value is not None and option not in takes[name]:
            raise UsageError(f"{option} does nothing with --executor {name}, found {value}; drop it")
    if name in NEEDS_WORKERS and (workers is None or workers < 1):
        raise UsageError(f"--executor {name} needs --workers, a number from 1 on, found {workers}")
    if name == "pool":
        # Before what it needs is imported here: both import at once.
        source = Source.begin() if to_run and can_fork() else None
        from tropism.experiments.executors.pool import Pool

        return Pool(workers or 1, source)
    if name == "ray":
        from tropism.experiments.executors.on_ray import Ray

        return Ray(address, resources or {})
    if name == "slurm":
        from tropism.experiments.executors.slurm import Slurm

        return Slurm(workers or 1, resources or {})
    return None


def read_resources(given: Sequence[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` pairs; numbers become numbers."""
    from tropism.experiments.file.yaml_file import parse_value

    found: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--resource takes NAME=VALUE, as in num_gpus=0.25, found {pair!r}")
        found[name.strip()] = parse_value(value, f"--resource {name.strip()}")
    return found


def refuse_launcher() -> None:
    """Raise `UsageError` where a launcher has started this program several times: all would write the same files."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world.isdigit() and int(world) > 1:
        raise UsageError(LAUNCHED.format(rank=os.environ.get("RANK", "?"), world=world))
