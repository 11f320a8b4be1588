"""The checkpoints of a run that is not finished: which of them it can go on from, and what is said where there is none.

A checkpoint counts for the training of which it was made, by its identity, and only whole: `SEALED.json`, written last,
holds that identity and the hash of every file.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tropism.atomic import write_text
from tropism.experiments.kept import Stamp, check_stamp, write_stamp
from tropism.training.options import TrainOptions

FOLDER = "checkpoints"
SEAL = "SEALED.json"


@dataclass(frozen=True)
class Found:
    """The last whole checkpoint of a training."""

    path: Path
    step: int
    batch: tuple[int, int]
    """Examples per forward pass, and forward passes per step: `batch_size: auto` may have tried larger ones before."""


@dataclass(frozen=True)
class RunCheckpoints:
    """The checkpoints in a run's folder, of the training with this identity."""

    run: Path
    identity: str

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.run / FOLDER

    def latest(self) -> Found | None:
        """Return the last whole checkpoint of this training."""
        for path, step in reversed(_numbered(self.folder)):
            stamp = check_stamp(path / SEAL, "train", "batch")
            if stamp and stamp.said["train"] == self.identity:
                return Found(path, step, (int(stamp.said["batch"][0]), int(stamp.said["batch"][1])))
        return None

    def why_not(self) -> str:
        """Return why what lies there cannot be gone on from; empty where there is nothing."""
        stamps = [check_stamp(path / SEAL, "train", "batch") for path, _ in _numbered(self.folder)]
        if not stamps:
            return ""
        if any(_is_other(stamp, self.identity) for stamp in stamps):
            return "its checkpoint was made with other options or data, so it is left and training begins anew"
        return f"its checkpoint cannot be used ({stamps[-1].flaw}), so training begins anew"

    def seal(self, path: Path, options: TrainOptions) -> None:
        """Mark a checkpoint as whole."""
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != SEAL]
        write_stamp(path / SEAL, files, train=self.identity, batch=[options.first_batch, options.accumulation])

    def go_back_to(self, found: Found) -> None:
        """Leave of the run's folder what was there when the checkpoint was made: later steps come again."""
        for path, step in _numbered(self.folder):
            if step > found.step:
                shutil.rmtree(path)
        for other in self.run.iterdir():
            if other.is_dir() and other != self.folder:
                shutil.rmtree(other)
        for log in sorted(self.run.glob("*.jsonl")):
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if 0 <= _step(line) <= found.step]
            write_text(log, "".join(kept))

    def clear(self) -> None:
        """Remove them all."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _numbered(folder: Path) -> list[tuple[Path, int]]:
    """Return the checkpoints in a folder with their steps, the earliest first."""
    found = [(path, re.fullmatch(r"checkpoint-(\d+)", path.name)) for path in folder.glob("checkpoint-*")]
    return sorted(((path, int(match[1])) for path, match in found if match), key=lambda pair: pair[1])


def _is_other(stamp: Stamp, identity: str) -> bool:
    return bool(stamp) and stamp.said["train"] != identity


def _step(line: str) -> int:
    """The step of a log's line; -1 for a line that was not written to its end."""
    try:
        held: Any = json.loads(line)
    except ValueError:
        return -1
    step = held.get("step") if isinstance(held, dict) else None
    return step if isinstance(step, int) else -1
