"""What is learned of some data, token by token: the rows of an experiment or of a data file, as training would see them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tropism import models
from tropism.data.chats import Example, OnBadRow, Supervise
from tropism.data.render import BadRow, Rendered, render_rows
from tropism.data.templates import set_chat_template
from tropism.errors import SpecError
from tropism.experiments import prepare
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.spec import DataSpec
from tropism.experiments.start import load_tokenizer
from tropism.reports.tokens import Piece, ShownRow

EXPERIMENTS = (".yaml", ".yml")
_WINDOW = 6
"""Tokens before one that can change how it is written."""


@dataclass(frozen=True)
class DataChoice:
    """How a data file is read: what an experiment file says of a set."""

    split: str = "train"
    columns: Mapping[str, str] | None = None
    supervise: Supervise = "all_turns"
    on_bad_row: OnBadRow = "skip"


def show_experiment(
    path: Path, *, model: str | None = None, condition: str | None = None, rows: int = 3
) -> list[ShownRow]:
    """Return the first rows of each condition of an experiment, or of one.

    Raises:
        SpecError: the file breaks a rule, or has no such condition.
    """
    experiment = Experiment.load(path, overrides={} if model is None else {"model": model})
    if condition is not None and condition not in experiment.conditions:
        raise SpecError(
            f"--condition: no condition is called {condition!r}; available: {', '.join(experiment.conditions)}"
        )
    if condition is not None and condition not in experiment.trained:
        raise SpecError(f"--condition: nothing is trained for {condition!r}; choose a condition that trains")
    source = models.resolve(experiment.model, revision=experiment.revision)
    tokenizer = load_tokenizer(experiment, source)
    shown: list[ShownRow] = []
    for name in [condition] if condition else experiment.trained:
        examples = prepare.training_examples(experiment, name, experiment.seeds[0])
        shown += _shown(tokenizer, examples[:rows], f"condition {name}", experiment.template_kwargs)
    return shown


def show_file(
    path: Path,
    model: str,
    choice: DataChoice,
    *,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    rows: int = 3,
) -> list[ShownRow]:
    """Return the first rows of a data file, with a model's tokenizer; `choice` says what of them is learned."""
    spec = DataSpec(
        source=str(path),
        split=choice.split,
        columns=dict(choice.columns) if choice.columns else None,
        supervise=choice.supervise,
        on_bad_row=choice.on_bad_row,
    )
    examples = prepare.load_data(spec, 0)
    tokenizer = models.load_tokenizer(models.resolve(model))
    if chat_template is not None:
        set_chat_template(tokenizer, chat_template)
    return _shown(tokenizer, examples[:rows], path.name, template_kwargs or {})


def _shown(tokenizer: Any, examples: list[Example], what: str, template_kwargs: Mapping[str, Any]) -> list[ShownRow]:
    found = render_rows(
        tokenizer,
        (example.content for example in examples),
        template_kwargs=template_kwargs,
        supervise=[example.supervise for example in examples],
        names=[example.id for example in examples],
    )
    shown = []
    for example, made in zip(examples, found, strict=True):
        title = f"{what}, example {example.id}"
        if isinstance(made, BadRow):
            shown.append(ShownRow(title, (), (made.reason,), refused=True))
            continue
        for number, row in enumerate(made, start=1):
            part = f"{title}, row {number} of {len(made)}" if len(made) > 1 else title
            shown.append(ShownRow(part, tuple(_pieces(tokenizer, row)), row.notes))
    return shown


def _pieces(tokenizer: Any, row: Rendered) -> list[Piece]:
    """The row's tokens as they are written; a token that is half a character is joined to the next."""
    pieces: list[Piece] = []
    begun = 0
    for index, learned in enumerate(row.response_mask):
        first = max(0, begun - _WINDOW)
        before = tokenizer.decode(row.input_ids[first:begun], clean_up_tokenization_spaces=False)
        whole = tokenizer.decode(row.input_ids[first : index + 1], clean_up_tokenization_spaces=False)
        last = index + 1 == len(row.input_ids)
        same = not last and row.response_mask[index + 1] == learned
        if whole.endswith("\ufffd") and same:
            continue
        pieces.append(Piece(whole[len(before) :], learned, index + 1 - begun))
        begun = index + 1
    return pieces
