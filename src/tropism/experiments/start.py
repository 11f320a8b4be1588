"""The model that every condition of an experiment starts from, with `start_from` merged in.

A run takes it from `held_model`, which loads it once.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tropism import models
from tropism.adapters.merge import merge_adapters
from tropism.data.templates import set_chat_template
from tropism.errors import RunFolderError
from tropism.experiments.file.spec import ExperimentSpec, ModelSpec
from tropism.experiments.store import Folder, RunKey

TEMPLATE = "chat_template.jinja"
"""The copy in a results folder of the chat template that an experiment names."""


def load_base(experiment: ExperimentSpec, source: models.Source, folder: Folder | None = None) -> tuple[Any, Any]:
    """The untouched model and its tokenizer; the source's note is the caller's to say, once."""
    quiet = replace(source, note="")
    model, tokenizer = models.load_source(
        quiet,
        device=experiment.device,
        dtype=experiment.dtype,
        trust_remote_code=experiment.trust_remote_code,
        blocks=experiment.blocks,
        loading=experiment.loaded.loading,
    )
    _set_template(experiment, tokenizer, folder)
    return model, tokenizer


def load_tokenizer(experiment: ExperimentSpec, source: models.Source, folder: Folder | None = None) -> Any:
    """Return the experiment's tokenizer, with the chat template that the file names; loads no weights."""
    tokenizer = models.load_tokenizer(source, trust_remote_code=experiment.trust_remote_code)
    _set_template(experiment, tokenizer, folder)
    return tokenizer


def _set_template(experiment: ExperimentSpec, tokenizer: Any, folder: Folder | None) -> None:
    """Give the tokenizer the experiment's chat template: the folder's copy, which is what was trained with, comes first."""
    if experiment.chat_template is None:
        return
    copy = None if folder is None else folder.path / TEMPLATE
    set_chat_template(tokenizer, copy if copy is not None and copy.is_file() else experiment.chat_template)


def prepared_adapter(folder: Folder, name: str) -> Path:
    """Return where a prepared adapter (of `adapters:`) lies."""
    return folder.run_path(adapter_key(name)) / "adapter"


def adapter_key(name: str) -> RunKey:
    """Return the key under which a prepared adapter is kept, as a run is."""
    return RunKey(f"adapters/{name}", None)


def intact_adapter(folder: Folder, name: str) -> Path:
    """Return where a prepared adapter lies; raise `RunFolderError` where it is not there as it was trained."""
    flaw = folder.trained(adapter_key(name)).flaw
    if flaw:
        raise RunFolderError(f"the prepared adapter {name!r} cannot be used: {flaw}; run the experiment again")
    return prepared_adapter(folder, name)


def load_arm(experiment: ExperimentSpec, condition: str) -> Any:
    """The model that a condition names, in the place of training one."""
    return load_base(experiment, source_of_arm(experiment, condition))[0]


def tokenizer_of_arm(experiment: ExperimentSpec, condition: str) -> Any:
    """The tokenizer of the model that a condition names."""
    return load_tokenizer(experiment, source_of_arm(experiment, condition))


def load_side(experiment: ExperimentSpec, folder: Folder, named: str | ModelSpec, untouched: Any) -> Any:
    """One side of a contrast of models: a prepared adapter on the untouched model, or a whole model."""
    if isinstance(named, str):
        return models.load_adapter(untouched, intact_adapter(folder, named))
    return load_base(experiment, models.resolve(named.model, revision=named.revision))[0]


def source_of_arm(experiment: ExperimentSpec, condition: str) -> models.Source:
    """Where the model that a condition names is."""
    spec = experiment.conditions[condition]
    assert spec.model is not None  # it is asked for where a condition names a model
    return models.resolve(spec.model, revision=spec.revision)


def start_model(experiment: ExperimentSpec, folder: Folder, source: models.Source) -> tuple[Any, Any]:
    """The model before a condition's training, loaded anew, and its tokenizer."""
    model, tokenizer = load_base(experiment, source, folder)
    if experiment.start_from is not None:
        model = merge_adapters(models.load_adapter(model, intact_adapter(folder, experiment.start_from)))
    return model, tokenizer
