"""Who does what in a results folder that several processes share: no piece of work is done twice, none is lost.

```text
OUT/.claims/runs/caft/seed-0/
  0.json      {"host": …, "pid": …, …}; its time of change is the owner's heartbeat
  1.json      the next owner: the process before it has died, or has released the claim
```

A claim is a file that its owner creates with O_EXCL, so there is one owner. The file with the highest number is the
claim; nobody removes one. To take over from a dead owner is to create the next number, which only one process can do.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tropism.atomic import write_text
from tropism.errors import ClaimLost

BEAT_S = 20.0
"""How often an owner says that it is alive."""
SILENT_S = 300.0
"""An owner that was silent for longer is taken for dead."""
POLL_S = 1.0
"""How often a process that waits for another looks again."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a claim."""

    host: str
    pid: int
    started: float
    """When the process started: its id alone may belong to another one by now."""
    processes: str = ""
    """The space in which the id is valid: two containers on one host may each have a process 17."""
    since: float = 0.0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Owner:
    """Return this process as the owner of a claim."""
    return _described(os.getpid())


@cache
def _described(pid: int) -> Owner:
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        processes = ""
    return Owner(socket.gethostname(), pid, psutil.Process(pid).create_time(), processes)


@dataclass(frozen=True)
class Latest:
    """The last claim to a piece of work."""

    number: int
    owner: Owner | None
    """None where it was released, or could not be read."""
    released: bool
    beat: float

    def live(self) -> bool:
        """Whether its owner is at work, as far as can be known from here."""
        if self.released or time.time() - self.beat > SILENT_S:
            return False
        return self.owner is None or not _gone(self.owner)


class Claims:
    """The claims of a results folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".claims"

    def take(self, name: str) -> "Claim | None":
        """Claim a piece of work (`runs/caft/seed-0`); None where another process holds it."""
        latest = self._latest(name)
        if latest is not None and latest.live():
            return None
        number = 0 if latest is None else latest.number + 1
        path = self.folder / name / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        owner = replace(this_process(), since=time.time())
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return None
        with os.fdopen(file, "w", encoding="utf-8") as opened:
            json.dump(asdict(owner), opened)
        return Claim(path)

    def wait(self, name: str, say: Callable[[str], None] = lambda _: None, what: str = "") -> "Claim":
        """Claim a piece of work, once whoever holds it has finished or died; `say` is told of whom it waits for."""
        told: str | None = None
        while (claim := self.take(name)) is None:
            holder = self.holder(name)
            if holder is not None and str(holder) != told:
                told = str(holder)
                say(f"waiting for {what or name}, which {told} is at work on")
            time.sleep(POLL_S)
        return claim

    def holder(self, name: str) -> Owner | None:
        """Return the process that is at work on it now, if there is one."""
        latest = self._latest(name)
        return latest.owner if latest is not None and latest.live() else None

    def _latest(self, name: str) -> Latest | None:
        folder = self.folder / name
        numbers = [int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit()] if folder.is_dir() else []
        if not numbers:
            return None
        path = folder / f"{max(numbers)}.json"
        held = _read(path)
        return Latest(max(numbers), owner_of(held), "released" in held, path.stat().st_mtime)


class Claim:
    """A claim of this process, renewed by a thread until it is released; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = path.with_name(f"{int(path.stem) + 1}.json")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name=f"claim {path}")
        self._thread.start()

    def check(self) -> None:
        """Raise `ClaimLost` where another process took this one for dead: a laptop that slept, a stopped process."""
        if self._next.exists():
            raise ClaimLost(
                f"another process has taken {self._path.parent.name} over, since this one was silent for more than "
                f"{SILENT_S / 60:.0f} minutes"
            )

    def release(self) -> None:
        """Let others have it."""
        self._ended.set()
        self._thread.join()
        if self._path.exists():  # somebody may have removed the whole results folder
            write_text(self._path, json.dumps({**_read(self._path), "released": time.time()}))

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            now = time.time()
            try:
                os.utime(self._path, (now, now))
            except FileNotFoundError:
                return


def _read(path: Path) -> dict[str, Any]:
    """Return what a claim says; nothing while its owner is still writing it."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def owner_of(held: dict[str, Any]) -> Owner | None:
    names = Owner.__dataclass_fields__
    if "released" in held or not {"host", "pid", "started"} <= set(held):
        return None
    return Owner(**{name: held[name] for name in names if name in held})


def _gone(owner: Owner) -> bool:
    """Whether an owner on this machine is no longer there; of another machine nothing is known but its heartbeat."""
    here = this_process()
    if (owner.host, owner.processes) != (here.host, here.processes):
        return False
    try:
        process = psutil.Process(owner.pid)
        # A killed process whose parent has not asked for it still has its id.
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        return bool(abs(process.create_time() - owner.started) > 2)
    except psutil.NoSuchProcess:
        return True
