"""The model that every condition of an experiment starts from, with `start_from` merged in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tropism import models
from tropism.adapters.merge import merge_adapters
from tropism.errors import RunFolderError
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.store import Folder, RunKey


def load_base(experiment: ExperimentSpec, source: models.Source) -> tuple[Any, Any]:
    """The untouched model and its tokenizer; the source's note is the caller's to say, once."""
    quiet = replace(source, note="")
    return models.load_source(
        quiet, device=experiment.device, dtype=experiment.dtype, trust_remote_code=experiment.trust_remote_code
    )


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


def start_model(experiment: ExperimentSpec, folder: Folder, source: models.Source) -> tuple[Any, Any]:
    """The model before a condition's training, loaded anew, and its tokenizer."""
    model, tokenizer = load_base(experiment, source)
    if experiment.start_from is not None:
        model = merge_adapters(models.load_adapter(model, intact_adapter(folder, experiment.start_from)))
    return model, tokenizer
