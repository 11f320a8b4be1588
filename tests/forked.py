"""Processes forked from one that has imported torch, transformers, PEFT and Tropism already.

A process of its own imports them for seconds, and tests of distributed work start dozens. Each test process keeps one
fork server, which never computes anything, so what is forked from it is as new as what is started.
"""

import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import peft  # noqa: F401
import transformers  # noqa: F401

import tropism.experiments.run  # noqa: F401
from tropism.experiments import processes

STARTS = multiprocessing.get_context("forkserver")
STARTS.set_forkserver_preload(["forked"])


class Forked:
    """A forked process, with the methods of `subprocess.Popen` that Tropism and its tests use."""

    def __init__(
        self,
        do: Callable[..., None],
        *given: object,
        environment: Mapping[str, str] = os.environ,
        log: Path | None = None,
    ):
        self._process = STARTS.Process(target=_be, args=(dict(environment), log, do, given))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, which: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, which)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _be(environment: dict[str, str], log: Path | None, do: Callable[..., None], given: tuple[object, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    faulthandler.enable()
    if log is not None:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    do(*given)


def script(path: Path | str, *arguments: object, log: Path) -> Forked:
    """Run a script with arguments, as `python path *arguments` would."""
    return Forked(_run_script, str(path), [str(argument) for argument in arguments], log=log)


def _run_script(path: str, arguments: Sequence[str]) -> None:
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def one_of_several(job: Path, rank: int, count: int, port: int) -> Forked:
    """What `tropism.experiments.processes` starts, forked."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in own.items()}}
    return Forked(_be_one, job, environment=environment, log=job.parent / f"{rank}.log")


def _be_one(job: Path) -> None:
    sys.argv = ["processes", str(job)]
    processes.main()
