"""The precision of an experiment's runs: chosen when it is begun and written down, so that all of them are computed alike.

It is no part of a run's identity: a folder that is gone on with, on this machine or another, keeps what is written there.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tropism import models, precision
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.kept import read_json_object
from tropism.experiments.store import Folder
from tropism.training.options import TrainOptions

NAME = "precision.json"


@dataclass(frozen=True)
class Settled:
    """Whether `auto` is bfloat16, in training and in generation; None leaves it to the device."""

    training: bool | None = None
    generation: bool | None = None

    def options(self, options: TrainOptions) -> TrainOptions:
        """Return the options of a fine-tune with `bf16: auto` settled."""
        if options.bf16 != "auto" or self.training is None:
            return options
        return options.model_copy(update={"bf16": self.training})

    def experiment(self, experiment: ExperimentSpec) -> ExperimentSpec:
        """Return the experiment with `generate: {dtype: auto}` settled, to generate by; its identity is the other's."""
        if experiment.generate.dtype != "auto" or self.generation is None:
            return experiment
        chosen = experiment.generate.model_copy(update={"dtype": "bfloat16" if self.generation else "float32"})
        return experiment.model_copy(update={"generate": chosen})


def read(folder: Folder, device: str) -> Settled | None:
    """Return what an experiment's folder says; None where it says nothing, or this device cannot follow it."""
    held = read_json_object(folder.path / NAME) or {}
    if not device.startswith("cpu") or not {"training", "generation"} <= held.keys():
        return None
    return Settled(held["training"] == "bfloat16", held["generation"] == "bfloat16")


def settle(
    experiment: ExperimentSpec, folder: Folder, source: models.Source, device: str, say: Callable[[str], None]
) -> Settled:
    """Return the precision of an experiment on a CPU: as its folder says, else as it is measured now; on a GPU, nothing.

    A folder from before this was written down goes on as it was begun, by the processor's flags.
    """
    if not device.startswith("cpu") or not _asks(experiment):
        return Settled()
    held = read(folder, device)
    if held is not None:
        return held
    if any(folder.path.glob("**/TRAINED.json")):
        flags = precision.Choice(
            models.computes_bfloat16(device), "as the runs that are there, by the processor's flags"
        )
        return _written(folder, flags, flags, say)
    config = models.load_config(source, trust_remote_code=experiment.trust_remote_code)
    generation = precision.for_generation(device, config, experiment.generate.max_new_tokens)
    return _written(folder, precision.for_training(device, config), generation, say)


def _asks(experiment: ExperimentSpec) -> bool:
    """Whether anything of the experiment is `auto`."""
    trained: list[Any] = [experiment.train_options(name).bf16 for name in experiment.trained]
    trained += [experiment.train_options(adapter=name).bf16 for name in experiment.adapters]
    return "auto" in [*trained, experiment.generate.dtype]


def _written(
    folder: Folder, training: precision.Choice, generation: precision.Choice, say: Callable[[str], None]
) -> Settled:
    said = {"training": training.name, "generation": generation.name, "why": [str(training), str(generation)]}
    folder.write(NAME, json.dumps(said, indent=1))
    say(f"precision: training in {training}, generation in {generation}")
    return Settled(training.bfloat16, generation.bfloat16)
