"""The precision of an experiment's runs: chosen when it is begun and written down, so that all of them are computed alike.

It is no part of a run's identity: a folder that is gone on with, on this machine or another, keeps what is written there.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tropism import models, precision
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.kept import read_json_object
from tropism.experiments.store import Folder
from tropism.training.options import TrainOptions

NAME = "precision.json"
LONGEST_EAGER = 256
"""Tokens of a row; its attention's weights then take as much memory as half a block's other activations, in SmolLM2."""


@dataclass(frozen=True)
class Settled:
    """Whether `auto` is bfloat16, in training and in generation; None leaves it to the device."""

    training: bool | None = None
    generation: bool | None = None
    eager: bool = False
    """Whether training is faster with eager attention."""

    def to_train(self, fresh_model: Callable[[], Any], longest: int) -> Callable[[], Any]:
        """Return how a model is made that is to be trained on rows of at most `longest` tokens.

        Eager attention holds the weights of every pair of tokens, so it is for short rows.
        """
        if not self.eager or longest > LONGEST_EAGER:
            return fresh_model
        return partial(_eager, fresh_model)

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
    return Settled(held["training"] == "bfloat16", held["generation"] == "bfloat16", held.get("attention") == "eager")


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
    training = precision.for_training(device, config)
    attention = (False, "as the file says")
    if experiment.loaded.attn_implementation is None:
        attention = precision.eager_attention(device, config, training.bfloat16)
    return _written(folder, training, generation, say, attention)


def _asks(experiment: ExperimentSpec) -> bool:
    """Whether anything of the experiment is `auto`."""
    trained: list[Any] = [experiment.train_options(name).bf16 for name in experiment.trained]
    trained += [experiment.train_options(adapter=name).bf16 for name in experiment.adapters]
    return "auto" in [*trained, experiment.generate.dtype]


def _written(
    folder: Folder,
    training: precision.Choice,
    generation: precision.Choice,
    say: Callable[[str], None],
    attention: tuple[bool, str] = (False, "as loaded"),
) -> Settled:
    eager, why = attention
    said = {
        "training": training.name,
        "generation": generation.name,
        "attention": "eager" if eager else "as loaded",
        "why": [str(training), str(generation), why],
    }
    folder.write(NAME, json.dumps(said, indent=1))
    say(f"precision: training in {training}, generation in {generation}")
    if eager:
        say(f"attention: eager in training on rows of at most {LONGEST_EAGER} tokens ({why})")
    return Settled(training.bfloat16, generation.bfloat16, eager)


def _eager(fresh_model: Callable[[], Any]) -> Any:
    model = fresh_model()
    model.set_attn_implementation("eager")
    return model
