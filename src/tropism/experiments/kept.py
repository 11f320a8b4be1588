"""Stamps: what was made, from what, and the hash of each of its files, so that a changed file is never taken for it.

A stamp is a JSON file beside what it describes, written after it. Whoever keeps or reads an artefact checks its stamp.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tropism.atomic import write_text

SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Stamp:
    """What a stamp says, and `flaw`: why what it describes cannot be used, empty where it can."""

    said: Mapping[str, Any]
    flaw: str = ""

    def __bool__(self) -> bool:
        return not self.flaw


def write_stamp(path: Path, files: Iterable[Path], **said: Any) -> None:
    """Write a stamp of files, which lie below its folder; `said` is JSON."""
    hashes = {file.relative_to(path.parent).as_posix(): file_hash(file) for file in files}
    write_text(path, json.dumps({**said, "files": hashes}, indent=1))


def check_stamp(path: Path, *keys: str) -> Stamp:
    """Read a stamp and hash every file it names; it must say something of each of `keys`."""
    held = read_json_object(path)
    if held is None:
        return Stamp({}, f"{path.name} is not there" if not path.exists() else f"{path.name} was changed")
    if not isinstance(held.get("files"), dict):
        return Stamp(held, f"{path.name} has no hashes of files, since an older version wrote it")
    missing = [key for key in keys if key not in held]
    if missing:
        return Stamp(held, f"{path.name} says nothing of {missing[0]!r}")
    for name, expected in held["files"].items():
        try:
            found = file_hash(path.parent / name)
        except FileNotFoundError:
            return Stamp(held, f"{name} is missing")
        if found != expected:
            return Stamp(held, f"{name} was changed after it was written")
    return Stamp(held)


def read_json_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None where there is no such file, or it is damaged."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return held if isinstance(held, dict) else None


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file; one that this process hashed before and nobody wrote to since is not read again."""
    stat = path.stat()
    seen = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    # A second write within the clock's tick would leave the same times, so a file that is so new is always read.
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < SETTLED_NS:
        return _read_and_hash(path)
    return _hashed(path, *seen)


@lru_cache(maxsize=65_536)
def _hashed(path: Path, *_seen: int) -> str:
    return _read_and_hash(path)


def _read_and_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
