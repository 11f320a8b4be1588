"""The process that a pool's workers are forked from: it imports what they need while the experiment is being prepared.

```text
tropism run ──► Source.begin()                imports torch, transformers, PEFT
   prepares            │
   Pool.start ───────► job, threads           loads the start model once; a fork is a worker that has all of this
                       ├── worker 0 ── worker 1 ── ...    its end is written into `ended`
```

It computes with one thread and touches no GPU, so that a fork of it may use both. This module imports
nothing heavy: it is begun first.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tropism.experiments.executors import worker

log = logging.getLogger("tropism")

LOST = -9
"""The code of a worker whose source was killed: it ends as well."""


def can_fork() -> bool:
    """Whether this system has forks that may go on computing: Linux."""
    return sys.platform == "linux"


@dataclass
class Worker:
    """A forked worker, as `subprocess.Popen` would show it."""

    pid: int
    _ended: Path
    _source: "subprocess.Popen[str]"
    returncode: int | None = None

    def poll(self) -> int | None:
        """Return its code where it has ended, else None."""
        if self.returncode is None:
            # Asked before the file is read: what it wrote before it ended is then in it.
            alone = self._source.poll() is not None
            codes = dict(json.loads(line) for line in self._lines())
            self.returncode = codes.get(self.pid, LOST if alone else None)
        return self.returncode

    def _lines(self) -> list[str]:
        whole, _, _ = (
            self._ended.read_text(encoding="utf-8").rpartition("\n") if self._ended.is_file() else ("", "", "")
        )
        return whole.splitlines()

    def terminate(self) -> None:
        """Tell it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; raises `subprocess.TimeoutExpired`."""
        ends = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if ends is not None and time.monotonic() > ends:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0.0)
            time.sleep(0.05)
        return code

    def _signal(self, which: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, which)


class Source:
    """The process, seen from the one that began it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.spent = False
        """Whether it has given its workers, which it does once."""

    @classmethod
    def begin(cls) -> "Source":
        """Begin to import; where nobody asks for workers it ends with this process."""
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tropism.experiments.executors.source"]
        environment = {**os.environ, **one_thread}
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        return cls(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=nowhere, text=True))

    def workers(self, job: Path, logs: Sequence[Path], threads: int) -> list[Worker]:
        """Fork a worker for each log, with so many threads; none where the source has died."""
        self.spent = True
        ended = job.with_name("ended")
        ended.unlink(missing_ok=True)
        asked = {"job": str(job), "logs": [str(log) for log in logs], "threads": threads, "ended": str(ended)}
        try:
            line = self._said(json.dumps(asked) + "\n")
        except BrokenPipeError:
            line = ""
        if not line:
            log.warning("the process that workers are forked from has ended; each worker imports for itself")
            self.end()
        return [Worker(pid, ended, self._process) for pid in json.loads(line or "[]")]

    def _said(self, asked: str) -> str:
        """Ask the source, and return the line that it says."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with stdout:
            with stdin:
                stdin.write(asked)
            return stdout.readline()

    def __del__(self) -> None:
        if not self.spent:
            self.end()

    def end(self) -> None:
        """End it where it is not needed."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def main() -> None:
    """Be the source."""
    import torch
    import transformers.trainer  # noqa: F401 - what every worker needs, and takes seconds

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its workers are told, and it outlives them
    line = sys.stdin.readline()
    if not line:
        return
    asked = json.loads(line)
    job = worker.read(Path(asked["job"]))
    worker.warm(job)
    left = {_fork(job, log, index, asked["threads"]): log for index, log in enumerate(asked["logs"])}
    print(json.dumps(list(left)), flush=True)
    while left:
        pid, status = os.wait()
        del left[pid]
        with Path(asked["ended"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps([pid, os.waitstatus_to_exitcode(status)]) + "\n")


def _fork(job: Any, log: str, index: int, threads: int) -> int:
    """Return the id of a fork that does the job; the fork itself never returns."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        _speak_to(log)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _compute_with(threads)
        code = worker.work(job, str(index))
    except BaseException:
        import traceback

        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _speak_to(log: str) -> None:
    """Read from nothing, and write what is said into a file."""
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for place, there in ((0, nothing), (1, file), (2, file)):
        os.dup2(there, place)


def _end_with(source: int) -> None:
    """End this process once its source is gone: whoever takes its run over must not find it at work here."""
    while os.getppid() == source:
        time.sleep(1)
    os._exit(1)


def _compute_with(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


if __name__ == "__main__":
    main()
