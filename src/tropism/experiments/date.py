"""The date that a chat template writes, frozen once per experiment: resumed and evaluated later, it renders the same."""

from datetime import date
from typing import Any

import yaml

from tropism.data.template_date import FROZEN_DATE, freeze, split_date, writes_date
from tropism.errors import SpecError
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.store import Folder


def with_frozen_date(experiment: ExperimentSpec, tokenizer: Any, folder: Folder) -> ExperimentSpec:
    """Return the experiment with `frozen_date` among its `template_kwargs`, where its chat template writes today's date.

    The file's own date comes first, then the one that the folder was begun with, then today's. Where the template writes
    no date, or `template_kwargs` gives the `date_string` it reads, the experiment is returned as it is. Raises `SpecError`
    for a date that is not one, or that no template would read.
    """
    variables, given = split_date(experiment.template_kwargs)
    written = writes_date(tokenizer.chat_template, variables)
    if given is not None:
        if not written:
            raise SpecError(
                f"template_kwargs: {FROZEN_DATE} is {given}, but the chat template of {experiment.model!r} writes no "
                f"date; leave it out"
            )
        freeze("", given)
        return experiment
    if not written:
        return experiment
    frozen = _held(folder) or date.today().isoformat()
    return experiment.model_copy(update={"template_kwargs": {**variables, FROZEN_DATE: frozen}})


def _held(folder: Folder) -> str | None:
    """Return the date that the folder's experiment was begun with."""
    file = folder.path / "experiment.yaml"
    if not file.is_file():
        return None
    held = yaml.safe_load(file.read_text(encoding="utf-8"))
    kwargs = held.get("template_kwargs") if isinstance(held, dict) else None
    frozen = kwargs.get(FROZEN_DATE) if isinstance(kwargs, dict) else None
    return None if frozen is None else str(frozen)
