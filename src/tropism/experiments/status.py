"""Which runs of a results folder are done, read from the folder alone."""

import json
from pathlib import Path

import yaml

from tropism.errors import RunFolderError
from tropism.experiments.run import plan
from tropism.experiments.spec import Experiment
from tropism.experiments.store import Folder


def of(path: Path) -> list[tuple[str, str, str]]:
    """(run, state, seconds) of every run that the folder's experiment has."""
    spec = path / "experiment.yaml"
    if not spec.is_file():
        raise RunFolderError(f"{path} holds no experiment.yaml, so it is no results folder")
    experiment = Experiment.model_validate(yaml.safe_load(spec.read_text(encoding="utf-8")))
    folder = Folder(path)
    rows = []
    for key in plan(experiment):
        done = folder.state(key)
        failed = folder.run_path(key) / "FAILED.json"
        if done is not None:
            rows.append((str(key), "done", str(done["seconds"])))
        elif failed.is_file():
            rows.append((str(key), "failed: " + json.loads(failed.read_text(encoding="utf-8"))["error"], ""))
        else:
            rows.append((str(key), "not finished" if folder.run_path(key).is_dir() else "not begun", ""))
    return rows
