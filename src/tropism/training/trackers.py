"""Trackers that a training reports to: one tracked run per training, under its own name, in a folder that stays."""

import os
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tracking:
    """Where trackers keep a training, and what they call it."""

    project: str
    """The experiment: W&B's and Trackio's project, MLflow's experiment."""
    run: str
    """The training inside it, `CONDITION/seed-N`."""
    folder: Path
    """Where trackers that write files write them; beside the runs, so that it outlives a training's own folder."""

    @property
    def name(self) -> str:
        """The tracked run's name, `EXPERIMENT/CONDITION/seed-N`."""
        return f"{self.project}/{self.run}"

    def environment(self) -> dict[str, str]:
        """What trackers read from the environment; what the user has set there is kept."""
        return {
            "TENSORBOARD_LOGGING_DIR": str(self.folder / "tensorboard" / self.run),
            "WANDB_PROJECT": self.project,
            "WANDB_DIR": str(self.folder),
            "TRACKIO_DIR": str(self.folder / "trackio"),
            "MLFLOW_EXPERIMENT_NAME": self.project,
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
        }


@contextmanager
def tracked(report_to: Collection[str], tracking: Tracking | None) -> Iterator[None]:
    """Name the tracked run inside, and end it afterwards, also after an exception: the next training begins its own."""
    if tracking is None or not report_to:
        yield
        return
    tracking.folder.mkdir(parents=True, exist_ok=True)
    ours = {name: value for name, value in tracking.environment().items() if name not in os.environ}
    os.environ.update(ours)
    if "trackio" in report_to:
        _say_where_trackio_writes(Path(os.environ["TRACKIO_DIR"]))
    users = _wandb_run()
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        # A run that the user began before is theirs to end.
        if users is None and _wandb_run() is not None:
            sys.modules["wandb"].finish()


def _say_where_trackio_writes(wanted: Path) -> None:
    """Trackio reads its folder once, when it is imported; a later change of the environment does not reach it."""
    loaded = sys.modules.get("trackio.utils")
    if loaded is not None and Path(loaded.TRACKIO_DIR).resolve() != wanted.resolve():
        warnings.warn(
            f"Trackio was imported before and writes to {loaded.TRACKIO_DIR}, not to {wanted}; set TRACKIO_DIR before "
            "it is imported, or run each experiment in a process of its own",
            stacklevel=3,
        )


def _wandb_run() -> object | None:
    """W&B's live run: the Trainer's integration goes on in it where there is one, and never ends it."""
    wandb = sys.modules.get("wandb")
    return None if wandb is None else wandb.run
