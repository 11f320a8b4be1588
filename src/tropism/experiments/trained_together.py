"""One fine-tune in several processes: data parallel (DDP), each with its share of every batch, the first of them writing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tropism.experiments.processes import Tell, Work, do_together
from tropism.experiments.store import TRAINER
from tropism.interventions.base import Intervention
from tropism.training.checkpoints import Checkpoints, whole_tensors, write_tensors
from tropism.training.options import TrainOptions
from tropism.training.randomness import isolated_randomness
from tropism.training.supervised import Report, Row, train
from tropism.training.trackers import Tracking


@dataclass(frozen=True)
class Training(Work):
    """What each process of one training is given. It can be pickled where its parts can."""

    adapted_model: Callable[[], Any]
    """Loads the model with its adapters; every process begins with the same."""
    rows: Sequence[Row]
    options: TrainOptions
    seed: int
    pad_id: int
    log: Path
    guard: Intervention | None
    callbacks: Sequence[Any]
    tracking: Tracking | None
    checkpoints: Checkpoints | None
    evaluate_on: Sequence[Row]

    after_a_kill: ClassVar[str] = "run again to go on from the last checkpoint"

    @property
    def folder(self) -> Path:
        return self.log.parent / TRAINER

    def do(self, rank: int, of: int, tell: Tell) -> None:
        first = rank == 0
        with isolated_randomness(self.seed):
            model = self.adapted_model()
            train(
                model,
                self.rows,
                self.options,
                pad_id=self.pad_id,
                seed=self.seed,
                log=self.log if first else self.folder / f"training-{rank}.jsonl",
                guard=self.guard,
                report=tell,
                callbacks=self.callbacks if first else (),
                tracking=self.tracking if first else None,
                checkpoints=self.checkpoints,
                evaluate_on=self.evaluate_on,
            )
        learned = whole_tensors(model)
        if first:
            write_tensors(learned, self.folder)


def train_together(training: Training, report: Report) -> Path:
    """Train in `options.processes` processes; returns the folder with what was learned (`load_trained` reads it).

    Raises as `do_together`.
    """
    do_together(training, training.options.processes, report)
    return training.folder
