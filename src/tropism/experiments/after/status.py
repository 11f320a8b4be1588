"""Which runs of a results folder are done, and which process is at work on which, read from the folder alone."""

from pathlib import Path

from tropism.experiments.after.finished import Finished
from tropism.experiments.plan import plan
from tropism.experiments.store import RunKey
from tropism.experiments.store_claims import claims_of


def of(path: Path) -> list[tuple[str, str, str]]:
    """Return (run, state, seconds) of every run that the folder's experiment has."""
    found = Finished.read(path)
    return [_row(found, key) for key in plan(found.experiment)]


def _row(found: Finished, key: RunKey) -> tuple[str, str, str]:
    owner = claims_of(found.folder.path).holder(f"runs/{key}")
    if owner is not None:
        return str(key), f"running: {owner}", ""
    stamp = found.folder.finished(key)
    if stamp:
        return str(key), "done", str(stamp.said.get("seconds", ""))
    failure = found.folder.failure(key)
    if failure:
        return str(key), f"failed: {failure.get('error', 'no reason was written')}", ""
    return str(key), "not finished" if found.folder.run_path(key).is_dir() else "not begun", ""
