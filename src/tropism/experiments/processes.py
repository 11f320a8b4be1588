"""What several processes do together: one fine-tune (`trained_together`), or one evaluation (`evaluated_together`).

The process that asks for it does no part of it: it starts the others, passes on how far they are, and takes what they found
from files. `python -m tropism.experiments.processes JOB` is one of them.
"""

import abc
import errno
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from tropism.atomic import says_disk_is_full
from tropism.errors import RunFailed, SpecError, TropismError
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.problems import as_said, raised_from

Tell = Callable[..., None]
"""Takes what JSON can hold."""
TOLD = "told.jsonl"
KILLED = -9
"""What a process returns that SIGKILL ended, a name that Windows' `signal` does not have."""
DISK_FULL = errno.ENOSPC
"""What a process returns that found the disk full: there may be no room to write why."""
LOOK_S = 0.1
"""How often the starting process looks how far the others are."""


class Work(abc.ABC):
    """What several processes do together. It can be pickled."""

    after_a_kill: ClassVar[str] = "run again"
    """What helps where a process was killed."""

    @property
    @abc.abstractmethod
    def folder(self) -> Path:
        """Where the processes leave what they have to say, and what they found."""

    @abc.abstractmethod
    def do(self, rank: int, of: int, tell: Tell) -> None:
        """Be one of the processes; `tell` gives the first one's progress to the one that started them."""


def do_together(work: Work, count: int, hear: Callable[..., None]) -> None:
    """Have work done by `count` processes; `hear` is called with what the first one tells.

    Raises what was raised in them: `MemoryError` where memory ran out, `RunFailed` where one of them was killed.
    """
    folder = work.folder
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier command left
    folder.mkdir(parents=True)
    job = folder / "job.pickle"
    job.write_bytes(pickle.dumps(work))
    port = _free_port()
    started = [_start(job, rank, count, port) for rank in range(count)]
    read = 0
    try:
        while all(process.poll() is None for process in started):
            read = _pass_on(folder / TOLD, read, hear)
            time.sleep(LOOK_S)
        # The others end soon after the first, or wait for one that failed.
        ends = time.monotonic() + 30
        while any(p.poll() is None for p in started) and not any(p.poll() for p in started) and time.monotonic() < ends:
            time.sleep(LOOK_S)
    finally:
        killed = any(process.poll() == KILLED for process in started)  # by another than this process
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
    _pass_on(folder / TOLD, read, hear)
    _raise_what_was_raised(folder, started, killed, work.after_a_kill)


def check_processes(experiment: ExperimentSpec, device: str) -> None:
    """Raise `SpecError` where a training asks for more processes than this machine has room for."""
    asked = {"the experiment": experiment.train.processes}
    asked |= {f"conditions.{name}": experiment.train_options(name).processes for name in experiment.trained}
    asked |= {
        f"adapters.{name}": experiment.train_options(adapter=name).processes
        for name, a in experiment.adapters.items()
        if a.data
    }
    for what, count in asked.items():
        if count > 1 and device.startswith("cuda") and count > torch.cuda.device_count():
            raise SpecError(
                f"{what}: train.processes must not be above the number of GPUs here, {torch.cuda.device_count()}, found {count}"
            )
        if count > 1 and device.startswith("mps"):
            raise SpecError(
                f"{what}: train.processes must be 1 on device mps, which one process alone can use, found {count}"
            )


def _start(job: Path, rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": max(1, torch.get_num_threads() // count),
    }
    environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
    with (job.parent / f"{rank}.log").open("wb") as said:
        command = [sys.executable, "-m", "tropism.experiments.processes", str(job)]
        return subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _pass_on(file: Path, read: int, hear: Callable[..., None]) -> int:
    """Hand on what was told since; returns how many bytes are read."""
    if not file.is_file():
        return read
    whole, newline, _ = file.read_bytes()[read:].rpartition(b"\n")
    for line in whole.splitlines():
        hear(*json.loads(line))
    return read + len(whole) + len(newline)


def _raise_what_was_raised(
    folder: Path, started: Sequence[subprocess.Popen[bytes]], killed: bool, after_a_kill: str = Work.after_a_kill
) -> None:
    """Raise, in this process, what ended the work in another."""
    for file in sorted(folder.glob("raised-*.json")):
        raise raised_from(json.loads(file.read_text(encoding="utf-8")))
    was_killed = RunFailed(f"one of {len(started)} processes was killed; {after_a_kill}")
    if killed:
        raise was_killed  # first: the others may have ended since, with a connection that was lost
    if any(process.returncode == DISK_FULL for process in started):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    for rank, process in enumerate(started):
        # One that was ended here, because another had failed, is not the reason.
        if process.returncode and process.returncode != KILLED:
            lines = (folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RunFailed(
                f"process {rank} of {len(started)} ended with code {process.returncode}: {(lines or ['nothing said'])[-1]}"
            )
    if any(process.returncode for process in started):
        raise was_killed


def main() -> None:
    """Be one of the processes."""
    job, rank, of = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    work: Work = pickle.loads(job.read_bytes())
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)

    def tell(*said: Any) -> None:
        if rank == 0:
            with (work.folder / TOLD).open("a", encoding="utf-8") as file:
                file.write(json.dumps(said) + "\n")

    try:
        work.do(rank, of, tell)
    except (TropismError, MemoryError, RuntimeError, OSError) as error:
        if says_disk_is_full(error):
            _leave(DISK_FULL)
        said = as_said(error)
        if said[0] != "MemoryError" and not isinstance(error, TropismError):
            raise
        (work.folder / f"raised-{rank}.json").write_text(json.dumps(said), encoding="utf-8")
        _leave(1)
    torch.distributed.barrier()
    _leave(0)


def _end_with(parent: int) -> None:
    """End this process once the one that started it is gone: whoever takes the run over must not find it at work here."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _leave(code: int) -> None:
    """End without torch's destructors: a process group that is destroyed under the GIL may wait for itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
