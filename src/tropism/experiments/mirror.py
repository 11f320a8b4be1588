"""A results folder in an object store (`s3://…`, `gs://…`, `memory://…`: whatever fsspec opens), by way of a copy here.

```text
URL  ── pull ──►  copy on this machine, where runs are done  ── push ──►  URL
                  $TROPISM_CACHE/mirrors/HASH/.store.json says which URL it is of
```

A run is brought here when it is claimed and taken there when it has ended, its stamps last. An interrupted run stays here,
and goes on here. The claims on the store are `store_claims`.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tropism.atomic import write_text
from tropism.errors import MissingExtra, RunFolderError, UsageError
from tropism.experiments.kept import read_json_object

MARK = ".store.json"
STAMPS = ("TRAINED.json", "FAILED.json", "DONE.json")
"""What says that a run's files are whole; the last that is written, and the first that is removed."""
SHARED = (".report.json",)
"""Hidden files that belong to the results; others are this machine's own."""
LOCAL = ("tracking",)
"""What stays on this machine: a tracker's own files."""


def is_url(place: str | Path) -> bool:
    """Whether a results folder is in a store: `s3://bucket/caps`."""
    return "://" in str(place)


def local_of(place: str | Path, *, reading: bool = False) -> Path:
    """Return the folder itself, or the copy here of one in a store, brought up to date.

    `reading` is for what only looks: the store must hold an experiment. Raises `UsageError` where the store does not
    answer, `MissingExtra` where fsspec needs a further package for it.
    """
    if not is_url(place):
        return Path(place)
    from tropism.models import cache_folder  # here, so that the status of a folder is read without torch

    url = str(place).rstrip("/")
    folder = cache_folder() / "mirrors" / hashlib.sha256(url.encode()).hexdigest()[:16]
    store = Store(url, folder)
    if reading and not store.exists("experiment.yaml"):
        raise RunFolderError(f"{url} holds no experiment.yaml, so it is no results folder")
    store.pull_all()
    if not (folder / MARK).is_file():
        write_text(folder / MARK, json.dumps({"url": url}))
    return folder


def store_of(folder: Path) -> "Store | None":
    """Return the store that a folder is a copy of; None of any other folder."""
    held = read_json_object(folder / MARK)
    return None if held is None else _opened(str(held["url"]), folder)


@cache
def _opened(url: str, folder: Path) -> "Store":
    return Store(url, folder)


class Store:
    """A results folder in an object store, and its copy here."""

    def __init__(self, url: str, folder: Path) -> None:
        import fsspec

        self.url, self.folder = url, folder
        try:
            fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise MissingExtra(f"the results folder {url} needs a package for its protocol: {error}") from None
        except ValueError as error:
            raise UsageError(
                f"the results folder {url} cannot be opened: {error}; give a path or a URL of fsspec"
            ) from None
        self.fs: Any = fs
        self.root = str(root).rstrip("/")

    def at(self, name: str) -> str:
        """Return the store's own path of a file in the results folder."""
        return f"{self.root}/{name}"

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Make an error of the store one sentence; what is done stays here."""
        try:
            yield
        except (OSError, ConnectionError) as error:
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(
                f"the store of {self.url} does not do what it is asked: {said}; what is done is kept in {self.folder}, so run "
                f"the same command again"
            ) from None

    def exists(self, name: str) -> bool:
        with self.answering():
            self.fs.invalidate_cache()
            return bool(self.fs.exists(self.at(name)))

    def read(self, name: str) -> bytes | None:
        """Return what a file there holds; None where there is none."""
        with self.answering():
            try:
                return bytes(self.fs.cat_file(self.at(name)))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        with self.answering():
            self.make_parent(name)
            self.fs.pipe_file(self.at(name), content)

    def names(self, below: str = "") -> list[str]:
        """Return the files there, below a folder, by their names in the results folder."""
        with self.answering():
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(self.at(below) if below else self.root)
            except FileNotFoundError:
                return []
        return sorted(str(path)[len(self.root) + 1 :] for path in found)

    def pull_all(self) -> None:
        """Bring everything here that is there: runs that ended there and not here, and the files that all share."""
        names = [name for name in self.names() if _travels(name)]
        runs = {str(Path(name).parent) for name in names if Path(name).name in STAMPS}
        for run in sorted(runs):
            self.pull(run)
        self._get(name for name in names if not any(name.startswith(f"{run}/") for run in runs))

    def pull(self, run: str) -> None:
        """Bring a run here where it has ended there, unless it is here as it is there."""
        there = {stamp: self.read(f"{run}/{stamp}") for stamp in STAMPS}
        if not any(there.values()):
            return
        here = self.folder / run
        if all(_bytes(here / stamp) == held for stamp, held in there.items()):
            return
        names = self.names(run)
        shutil.rmtree(here, ignore_errors=True)
        self._get(sorted(names, key=_stamps_last))

    def pull_files(self, names: Iterable[str]) -> None:
        """Bring files and folders here that all runs share."""
        self._get(found for name in names for found in self.names(name) if _travels(found))

    def push(self, run: str) -> None:
        """Take a run there that has ended here: old stamps go first, new ones come last."""
        here = self.folder / run
        if not any((here / stamp).is_file() for stamp in STAMPS):
            return
        with self.answering():
            for stamp in STAMPS:
                if self.fs.exists(self.at(f"{run}/{stamp}")):
                    self.fs.rm_file(self.at(f"{run}/{stamp}"))
        self._put(sorted(self._files(run), key=_stamps_last))

    def push_files(self, names: Iterable[str]) -> None:
        """Take files and folders there that all runs share."""
        self._put([found for name in names for found in self._files(name)])

    def push_rest(self) -> None:
        """Take there what all runs share, and every run that has ended here and never came there."""
        ended = {path.parent for path in self.folder.rglob("*.json") if path.name in STAMPS}
        runs = sorted(path.relative_to(self.folder).as_posix() for path in ended)
        for run in runs:
            if not any(self.exists(f"{run}/{stamp}") for stamp in STAMPS):
                self.push(run)
        self._put([name for name in self._files("") if not any(name.startswith(f"{run}/") for run in runs)])

    def _files(self, name: str) -> list[str]:
        path = self.folder / name
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        named = [file.relative_to(self.folder).as_posix() for file in files if file.is_file()]
        return [name for name in named if _travels(name)]

    def _get(self, names: Iterable[str]) -> None:
        for name in names:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.answering():
                self.fs.get_file(self.at(name), str(target))

    def _put(self, names: Iterable[str]) -> None:
        for name in names:
            with self.answering():
                self.make_parent(name)
                self.fs.put_file(str(self.folder / name), self.at(name))

    def make_parent(self, name: str) -> None:
        """Stores have no folders; those of fsspec that are file systems do."""
        self.fs.makedirs(self.at(name).rpartition("/")[0], exist_ok=True)


def _travels(name: str) -> bool:
    parts = Path(name).parts
    return parts[0] not in LOCAL and all(not part.startswith(".") or part in SHARED for part in parts)


def _stamps_last(name: str) -> tuple[bool, str]:
    return Path(name).name in STAMPS, name


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
