"""Pressure while a model trains: written to `pressure.jsonl` before the first step and after every N, on the same chats."""

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tropism.errors import DataError, RunFailed
from tropism.probes.training_pressure import PressureLog
from tropism.studies.inoculation.tables import plain


class PressureSteps(TrainerCallback):
    """Runs a `PressureLog` inside a Trainer; a gradient that is not finite fails the run."""

    def __init__(self, log: PressureLog, file: Path) -> None:
        self._log, self._file = log, file

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if state.global_step:  # it goes on from a checkpoint, and so does the file
            return
        self._file.write_text("", encoding="utf-8")
        self._measure(model, 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if state.global_step % self._log.every == 0:
            self._measure(model, state.global_step)

    def _measure(self, model: nn.Module, step: int) -> None:
        try:
            readings = self._log.measure(model, step)
        except DataError as error:
            # The chats were rendered and measured before training, so it is the model that went wrong.
            raise RunFailed(f"pressure at step {step}: {error}") from None
        row = {"step": step, **{name: plain(value) for name, value in readings.items()}}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
