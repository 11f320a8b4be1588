"""Claims on a results folder in a store: of this machine's processes in the copy here, of machines on the store.

```text
URL/.claims/runs/caft/seed-0/0.json     created only if absent; its `beat` is the owner's heartbeat
URL/.claims/one.json                    where the store cannot do that: the one machine that works on the folder
```

What a claim is on comes here when it is taken, and goes there when it is released.
"""

import json
import secrets
import threading
import time
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tropism.errors import ClaimLost, UsageError
from tropism.experiments.claims import BEAT_S, SILENT_S, Claim, Claims, Latest, Owner, owner_of, this_process
from tropism.experiments.mirror import Store, store_of

FILES = {
    "precision": ("precision.json", "experiment.yaml", "environment.json", "rendered.json"),
    "directions": ("directions",),
    "results": ("results.csv",),
}
"""What a claim is on, of what all runs share; others are on all of it."""
ONE = ".claims/one.json"


def claims_of(folder: Path) -> Claims:
    """Return the claims of a results folder, which may be the copy of one in a store."""
    store = store_of(folder)
    return Claims(folder) if store is None else StoreClaims(folder, store)


class StoreClaims(Claims):
    """The claims of a results folder in a store."""

    def __init__(self, folder: Path, store: Store) -> None:
        super().__init__(folder)
        self.store = store

    @cached_property
    def exclusive(self) -> bool:
        """Whether the store creates a file only where there is none: tried once, on a file of its own."""
        name = f".claims/tried-{secrets.token_hex(6)}"
        try:
            return self._create(name, b"") and not self._create(name, b"")
        finally:
            if self.store.exists(name):
                self.store.fs.rm_file(self.store.at(name))

    def take(self, name: str) -> Claim | None:
        """Claim a piece of work here and there, and bring it here; None where another process or machine holds it.

        Raises `UsageError` where the store has no claims and another machine works on the folder.
        """
        here = super().take(name)
        if here is None:
            return None
        try:
            there = self._take_there(name)
            if there is not None:
                _pull(self.store, name)
                return StoreClaim(here, self.store, name, there)
        except BaseException:
            here.release()
            raise
        here.release()
        return None

    def holder(self, name: str) -> Owner | None:
        here = super().holder(name)
        latest = self._latest_there(name)
        return here or (latest.owner if latest is not None and latest.live() else None)

    def _take_there(self, name: str) -> str | None:
        if not self.exclusive:
            self._only_one()
            return ONE
        latest = self._latest_there(name)
        if latest is not None and latest.live():
            return None
        claimed = f".claims/{name}/{0 if latest is None else latest.number + 1}.json"
        return claimed if self._create(claimed, _beating()) else None

    def _latest_there(self, name: str) -> Latest | None:
        there = [Path(path) for path in self.store.names(f".claims/{name}")]
        numbers = [int(path.stem) for path in there if path.stem.isdigit()]
        if not numbers:
            return None
        held = _object(self.store.read(f".claims/{name}/{max(numbers)}.json"))
        return Latest(max(numbers), owner_of(held), "released" in held, float(held.get("beat", 0)))

    def _only_one(self) -> None:
        """Say that this machine works on the folder; raise where another one does."""
        held, here = _object(self.store.read(ONE)), str(self.store.folder)
        owner = this_process()
        another = (held.get("host"), held.get("processes"), held.get("copy")) != (owner.host, owner.processes, here)
        if held and another and "released" not in held and time.time() - float(held.get("beat", 0)) < SILENT_S:
            raise UsageError(
                f"{self.store.url} is worked on by process {held.get('pid')} on {held.get('host')}, and this store cannot create "
                f"a file only where there is none, so runs cannot be shared out; wait for it, or take a store that can"
            )
        self.store.write(ONE, _beating(copy=here))

    def _create(self, name: str, content: bytes) -> bool:
        """Create a file there unless there is one; whether this process did."""
        with self.store.answering():
            self.store.make_parent(name)
            try:
                with self.store.fs.open(self.store.at(name), "xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
            except (NotImplementedError, ValueError):
                return name.startswith(".claims/tried-") and self.store.exists(name)
        return True


class StoreClaim(Claim):
    """A claim here and on the store; it is renewed on the store, and what it is on is taken there in the end."""

    def __init__(self, here: Claim, store: Store, name: str, there: str) -> None:
        self._here, self._store, self._name, self._there = here, store, name, there
        self._lost = False
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True, name=f"claim {store.url} {name}")
        self._beating.start()

    def check(self) -> None:
        self._here.check()
        if self._lost:
            raise ClaimLost(
                f"another machine has taken {self._name} over, since this one was silent for more than "
                f"{SILENT_S / 60:.0f} minutes"
            )

    def release(self) -> None:
        """Take what was claimed there, and let others have it."""
        self._over.set()
        self._beating.join()
        try:
            if not (self._lost or self._taken_over()):
                _push(self._store, self._name)
                released = {
                    "released": time.time(),
                    **({"copy": str(self._store.folder)} if self._there == ONE else {}),
                }
                self._store.write(self._there, _beating(**released))
        finally:
            self._here.release()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self._lost = self._lost or self._taken_over()
                if self._lost:
                    return
                copy = {"copy": str(self._store.folder)} if self._there == ONE else {}
                self._store.write(self._there, _beating(**copy))
            except UsageError:
                continue  # a store that does not answer for a moment; the claim lasts for several beats

    def _taken_over(self) -> bool:
        if self._there == ONE:
            return False
        after = Path(self._there)
        return self._store.exists(str(after.with_name(f"{int(after.stem) + 1}.json")))


def _beating(**more: Any) -> bytes:
    now = time.time()
    return json.dumps({**asdict(replace(this_process(), since=now)), "beat": now, **more}).encode()


def _object(content: bytes | None) -> dict[str, Any]:
    """Return what a claim says; nothing of one that is damaged."""
    try:
        held = json.loads(content or b"{}")
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _pull(store: Store, name: str) -> None:
    kind, _, rest = name.partition("/")
    if kind == "runs":
        store.pull(rest)
    elif kind == "adapters":
        store.pull(name)
    elif name == "results" or name not in FILES:
        store.pull_all()
    else:
        store.pull_files(FILES[name][:1])  # what else is in it is this process's to write


def _push(store: Store, name: str) -> None:
    kind, _, rest = name.partition("/")
    if kind == "runs":
        store.push(rest)
    elif kind == "adapters":
        store.push(name)
    elif name in FILES:
        store.push_files(FILES[name])
    else:
        store.push_rest()
