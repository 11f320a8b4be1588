"""A finished run as one model: the experiment's base with what a mode of the run's adapters learned merged into it."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tropism.errors import UsageError
from tropism.experiments.after.finished import Finished, locate
from tropism.experiments.file.complaints import listed
from tropism.experiments.file.spec import ConditionSpec
from tropism.experiments.start import (
    load_arm,
    load_base,
    prepared_adapter,
    source_of_arm,
    start_model,
    tokenizer_of_arm,
)
from tropism.experiments.store import RunKey
from tropism.experiments.subject import Trained
from tropism.interventions.routing_modes import MODES
from tropism.names import BASE


@dataclass(frozen=True)
class Arm:
    """A run in a mode; `mode` is `full` for one adapter and for the untrained model."""

    found: Finished
    key: RunKey
    mode: str

    @property
    def spec(self) -> ConditionSpec | None:
        """The condition in the file; None of the untrained model."""
        return self.found.experiment.conditions.get(self.key.condition)

    @property
    def whole(self) -> bool:
        """Whether the condition names a whole model, in the place of training one."""
        return self.spec is not None and self.spec.model is not None

    @property
    def folders(self) -> Mapping[str, Path]:
        """The adapters that the model has: one as `""`, or `retain` and `forget`; none of a whole model."""
        return {} if self.whole else self.found.adapters(self.key)

    @property
    def two(self) -> bool:
        """Whether the run has a retain and a forget adapter."""
        return len(self.folders) == 2

    @property
    def name(self) -> str:
        """`caft/seed-0`, or `routed/seed-0:forget_ablated` where there are modes."""
        return f"{self.key}:{self.mode}" if self.two else str(self.key)

    @property
    def trained(self) -> Trained:
        """The run's adapters as evaluation takes them."""
        folders = self.folders
        both = self.found.folder.run_path(self.key) / "adapter" if folders else None
        return Trained(folders.get("", both), len(folders) == 2)

    @property
    def untouched(self) -> bool:
        """Whether it is an adapter that was there already, which goes onto the model without `start_from`."""
        return self.spec is not None and self.spec.adapter is not None

    def digest(self) -> str:
        """SHA-256 of every adapter that is in the model, and of the base model's name and revision."""
        source = source_of_arm(self.found.experiment, self.key.condition) if self.whole else self.found.source()[0]
        said = hashlib.sha256(f"{source.name} {source.kind} {source.revision}".encode())
        folders = list(self.folders.values())
        if self.found.experiment.start_from is not None and not (self.untouched or self.whole):
            folders.append(prepared_adapter(self.found.folder, self.found.experiment.start_from))
        for folder in folders:
            for file in sorted(folder.glob("adapter_*")):
                said.update(file.name.encode() + file.read_bytes())
        return said.hexdigest()

    def load(self, *, merged: bool = True) -> tuple[Any, Any]:
        """The model, in evaluation mode, and its tokenizer; not `merged`: its adapter live, which takes a single one.

        Raises as `models.load` and `models.load_adapter`.
        """
        experiment, folder = self.found.experiment, self.found.folder
        if self.whole:
            model = load_arm(experiment, self.key.condition)
            tokenizer = tokenizer_of_arm(experiment, self.key.condition)
        elif self.untouched:
            model, tokenizer = load_base(experiment, self.found.source()[0], folder)
        else:
            model, tokenizer = start_model(experiment, folder, self.found.source()[0])
        if merged:
            model = self.trained.merged(model, self.mode)
        elif self.trained.adapter is not None:
            model = self.trained.load(model)
        return model.eval(), tokenizer


def arm_of(path: str | Path, mode: str | None = None) -> Arm:
    """The arm that `FOLDER/CONDITION/seed-N` names, with `:MODE` behind it or given apart; by default `full`.

    Raises:
        UsageError: an experiment's folder; a mode of a run with one adapter; a mode that does not exist, or given twice.
        RunFolderError: no results folder; a run that failed, is not finished, or has no adapter.
    """
    text = str(path)
    head, colon, tail = text.rpartition(":")
    # A drive of Windows (C:\runs) is no mode.
    if colon and not Path(text).exists() and not set(tail) & set("/\\"):
        if mode is not None:
            raise UsageError(f"the mode is given twice, as {tail!r} and {mode!r}; give it once")
        text, mode = head, tail
    if mode is not None and mode not in MODES:
        raise UsageError(f"a mode must be one of {listed(MODES)}, found {mode!r}")
    found, key = locate(text)
    if key is None:
        shown = [str(found.folder.run_path(done)) for done in found.done()]
        raise UsageError(f"{text} is an experiment's folder; give the folder of one run, finished are {listed(shown)}")
    arm = Arm(found, key, mode or "full")
    if not arm.two and arm.mode != "full":
        what = "is the untrained model" if key.condition == BASE else "was trained with one adapter"
        raise UsageError(f"the run {key} {what}, so it has no mode {mode!r}; leave the mode out")
    return arm


def arms_of(folder: str | Path) -> Iterator[Arm]:
    """The untrained model, every finished run in every mode that it has, and adapters and models that were there.

    What is behind an endpoint is no model that can be loaded, and is left out.
    """
    found, _ = locate(folder)
    there = [n for n, spec in found.experiment.conditions.items() if not spec.trains and spec.endpoint is None]
    for key in [RunKey(BASE, None), *found.done(), *(RunKey(name, None) for name in there)]:
        single = Arm(found, key, "full")
        yield from [Arm(found, key, mode) for mode in MODES] if single.two else [single]
