"""An experiment's folder: what was run, under which identity, and whether it was finished.

A run is identified by the hash of what determines it (`identity.py`). `DONE.json` is written last, with the hash of
every file of the run; a run without it was never finished and is never averaged. `TRAINED.json` is the same for the
adapter alone: training and evaluation have an identity each.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tropism.atomic import write_text
from tropism.errors import RunFolderError
from tropism.experiments import checkpoints
from tropism.experiments.checkpoints import RunCheckpoints
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.kept import Stamp, check_stamp, read_json_object, write_stamp
from tropism.names import run_name
from tropism.results.measurement import Measurement, read_measurements, results_table, to_line, typed_table
from tropism.results.problem import Problem

TRAINER, EVALUATOR = "trainer", "evaluator"
"""Below a run's folder, where several processes leave what they have to say; a command that is killed leaves them there."""


@dataclass(frozen=True)
class RunKey:
    """Condition × seed; the untrained model is `base` without a seed."""

    condition: str
    seed: int | None

    def __str__(self) -> str:
        return run_name(self.condition, self.seed)


@dataclass(frozen=True)
class Begun:
    """A run's folder, cleared: whether its adapter was kept, and what a reader must know of what was there."""

    kept: bool
    why: str


class Folder:
    """An experiment's folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, path: str | Path, experiment: ExperimentSpec) -> "Folder":
        """The experiment's folder, new or old; raises `RunFolderError` where it belongs to something else.

        Writes nothing: `record` does, once the data are known to be good.
        """
        target = Path(path)
        spec = target / "experiment.yaml"
        if target.exists() and not target.is_dir():
            raise RunFolderError(f"the output folder {target} is a file; give another with --out")
        if spec.is_file():
            held = yaml.safe_load(spec.read_text(encoding="utf-8"))
            owner = held.get("name") if isinstance(held, dict) else None
            if owner != experiment.name:
                raise RunFolderError(
                    f"the output folder {target} belongs to the experiment {owner!r}, not to {experiment.name!r}; give another "
                    f"with --out"
                )
        elif target.is_dir() and any(not path.name.startswith(".") for path in target.iterdir()):
            raise RunFolderError(
                f"the output folder {target} is not empty and holds no experiment; give another with --out"
            )
        _check_writable(target)
        return cls(target)

    def record(self, experiment: ExperimentSpec) -> None:
        """Write the experiment's file, resolved: from now on the folder is this experiment's."""
        text = yaml.safe_dump(experiment.resolved(), sort_keys=False, allow_unicode=True, width=110)
        self.write("experiment.yaml", text)

    def write(self, name: str, text: str) -> Path:
        """Write a file whole or not at all."""
        target = self.path / name
        write_text(target, text)
        return target

    def run_path(self, key: RunKey) -> Path:
        return self.path / run_name(key.condition, key.seed)

    def finished(self, key: RunKey) -> Stamp:
        """Return what DONE.json says of a run; it has a flaw where the run was not finished or a file was changed."""
        return check_stamp(self.run_path(key) / "DONE.json", "evaluate")

    def is_done(self, key: RunKey, evaluate: str) -> bool:
        """Say whether a run is finished under this identity."""
        stamp = self.finished(key)
        return bool(stamp) and stamp.said["evaluate"] == evaluate

    def problems(self, key: RunKey) -> list[Problem]:
        """Return what a finished run has no value of."""
        return [Problem(**held) for held in self.finished(key).said.get("problems", [])]

    def attempt(self, key: RunKey) -> str:
        """Return what tells how a run ended last from how it ended before; empty where it has not ended."""
        held = read_json_object(self.run_path(key) / "DONE.json") or self.failure(key)
        return str(held.get("attempt", ""))

    def trained(self, key: RunKey) -> Stamp:
        """Return what TRAINED.json says of a run's adapter; it has a flaw where the adapter must not be used."""
        return check_stamp(self.run_path(key) / "TRAINED.json", "train")

    def is_trained(self, key: RunKey, train: str) -> bool:
        """Say whether a run's adapter is there, whole, and trained under this identity."""
        stamp = self.trained(key)
        return bool(stamp) and stamp.said["train"] == train

    def begin(self, key: RunKey, train: str) -> Begun:
        """Clear what a run will write anew; its adapter is kept where it is this one and every file is as it was."""
        path = self.run_path(key)
        adapter, run = self.trained(key), self.finished(key)
        kept = bool(adapter) and adapter.said["train"] == train
        interrupted = RunCheckpoints(path, train)
        found = None if kept else interrupted.latest()
        why = ""
        if found is not None:
            why = f"its training was interrupted and goes on from step {found.step}"
        elif adapter.said and adapter.flaw:
            why = f"{adapter.flaw}; it is trained again"
        elif kept and run.said and run.flaw:
            why = f"{run.flaw}; it is evaluated again"
        for name in (TRAINER, EVALUATOR):
            shutil.rmtree(path / name, ignore_errors=True)
        for name in ("DONE.json", "FAILED.json"):
            (path / name).unlink(missing_ok=True)
        if found is not None:
            interrupted.go_back_to(found)
        elif not kept and path.is_dir():
            why = why or interrupted.why_not()
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        return Begun(kept, why)

    def mark_trained(self, key: RunKey, train: str, **said: Any) -> None:
        """Stamp what lies in a run's folder: the adapter and the log of its training; `said` is how it was trained."""
        path = self.run_path(key)
        write_stamp(path / "TRAINED.json", _files(path, "TRAINED.json"), train=train, **said)
        RunCheckpoints(path, train).clear()

    def mark_failed(self, key: RunKey, error: str) -> None:
        """Write why a run could not be finished."""
        self.write(f"{key}/FAILED.json", json.dumps({"error": error, "attempt": secrets.token_hex(8)}))

    def failure(self, key: RunKey) -> Mapping[str, Any]:
        """Return what FAILED.json says of a run, `attempt` being different for every failure; nothing without one."""
        return read_json_object(self.run_path(key) / "FAILED.json") or {}

    def mark_done(
        self,
        key: RunKey,
        train: str,
        evaluate: str,
        seconds: float,
        problems: Sequence[Problem] = (),
        cut: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """Stamp a run: its last file. `cut` is how many answers were cut off, of how many, by evaluation set."""
        path = self.run_path(key)
        write_stamp(
            path / "DONE.json",
            _files(path, "DONE.json"),
            train=train,
            evaluate=evaluate,
            seconds=round(seconds, 1),
            problems=[asdict(problem) for problem in problems],
            cut=dict(cut or {}),
            attempt=secrets.token_hex(8),
        )

    def write_measurements(self, key: RunKey, rows: Iterable[Measurement]) -> None:
        """Write a run's `measurements.jsonl`."""
        name = self.run_path(key).relative_to(self.path) / "measurements.jsonl"
        self.write(str(name), "".join(to_line(row) for row in rows))

    def collect(self, experiment: ExperimentSpec, keys: Sequence[RunKey]) -> pd.DataFrame:
        """Write `results.csv` from the runs that are finished, in the order of the experiment.

        Returns the same rows typed (`TYPED_COLUMNS`): what analyses read, beyond the nine columns of the file.
        """
        rows = []
        for key in keys:
            if self.finished(key):
                for one in read_measurements(self.run_path(key) / "measurements.jsonl"):
                    rows.append((experiment.name, key.condition, key.seed, one))
        table = typed_table(rows)
        write_text(self.path / "results.csv", results_table(table).to_csv(index=False))
        return table


def _files(path: Path, stamp: str) -> list[Path]:
    """Return the files below a folder, but the stamp itself, what another process may be writing (hidden files), and
    the checkpoints, which go once the run is stamped.
    """
    return [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and not file.name.startswith(".")
        and file.name != stamp
        and path / checkpoints.FOLDER not in file.parents
    ]


def _check_writable(target: Path) -> None:
    """Raise `RunFolderError` where the folder, or one above it, cannot be written; nothing is written to find out."""
    there = next(path for path in (target.absolute(), *target.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written to" if there.is_dir() else "is a file"
        raise RunFolderError(
            f"the output folder {target} cannot be made or written, since {there} {why}; give another with --out"
        )
