"""Which runs of a results folder are done, read from the folder alone."""

import json
from pathlib import Path

from tropism.experiments.after.finished import Finished
from tropism.experiments.plan import plan


def of(path: Path) -> list[tuple[str, str, str]]:
    """(run, state, seconds) of every run that the folder's experiment has."""
    found = Finished.read(path)
    folder = found.folder
    rows = []
    for key in plan(found.experiment):
        done = folder.state(key)
        failed = folder.run_path(key) / "FAILED.json"
        if done is not None:
            rows.append((str(key), "done", str(done["seconds"])))
        elif failed.is_file():
            rows.append((str(key), "failed: " + json.loads(failed.read_text(encoding="utf-8"))["error"], ""))
        else:
            rows.append((str(key), "not finished" if folder.run_path(key).is_dir() else "not begun", ""))
    return rows
