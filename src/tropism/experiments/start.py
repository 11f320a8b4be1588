"""The model that every condition of an experiment starts from, with `start_from` merged in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tropism import models
from tropism.errors import RunFolderError
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.store import Folder


def load_base(experiment: ExperimentSpec, source: models.Source) -> tuple[Any, Any]:
    """The untouched model and its tokenizer; the source's note is the caller's to say, once."""
    quiet = replace(source, note="")
    return models.load_source(
        quiet, device=experiment.device, dtype=experiment.dtype, trust_remote_code=experiment.trust_remote_code
    )


def prepared_adapter(folder: Folder, name: str) -> Path:
    """Return where a prepared adapter (of `adapters:`) lies."""
    return folder.path / "adapters" / name / "adapter"


def start_model(experiment: ExperimentSpec, folder: Folder, source: models.Source) -> tuple[Any, Any]:
    """The model before a condition's training, loaded anew, and its tokenizer."""
    model, tokenizer = load_base(experiment, source)
    if experiment.start_from is not None:
        adapter = prepared_adapter(folder, experiment.start_from)
        if not (adapter / "adapter_config.json").is_file():
            raise RunFolderError(
                f"start_from: the adapter {experiment.start_from!r} is not in {adapter}; run the experiment again"
            )
        loaded: Any = models.load_adapter(model, adapter)
        model = loaded.merge_and_unload()
    return model, tokenizer
