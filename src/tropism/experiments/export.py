"""What an experiment trains on, as rows that every trainer reads, and that Tropism reads back as they were."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tropism.atomic import replacing
from tropism.data.chats import Chat, Example
from tropism.directions.contrasts import Contrast
from tropism.errors import SpecError
from tropism.experiments import directions as directions_step
from tropism.experiments import prepare
from tropism.experiments.file.spec import ExperimentSpec


def row_of(example: Example) -> dict[str, Any]:
    """Return an example as a row: `id`, `messages` (or `text`), and `target` and `labels` where it has them."""
    content = {"messages": list(example.chat)} if example.text is None else {"text": example.text}
    row: dict[str, Any] = {"id": example.id, **content}
    if example.target is not None:
        row["target"] = example.target
    if example.labels:
        row["labels"] = dict(example.labels)
    return row


def condition_rows(experiment: ExperimentSpec, condition: str, seed: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield what a condition trains on with a seed (by default the first), its system prompt and labels included."""
    if not experiment.conditions[_known(condition, experiment.conditions, "condition")].trains:
        raise SpecError(f"nothing is trained for the condition {condition!r}; choose one that trains")
    examples = prepare.training_examples(experiment, condition, _seed(experiment, seed))
    return (row_of(example) for example in examples)


def adapter_rows(experiment: ExperimentSpec, adapter: str) -> Iterator[dict[str, Any]]:
    """Yield what a prepared adapter trains on."""
    spec = experiment.adapters[_known(adapter, experiment.adapters, "adapter")]
    if spec.data is None:
        raise SpecError(f"the adapter {adapter!r} was trained elsewhere, so there are no rows of it to export")
    return (row_of(example) for example in prepare.load_data(spec.data, experiment.seeds[0], spec.system_prompt))


def set_rows(experiment: ExperimentSpec, name: str) -> Iterator[dict[str, Any]]:
    """Yield a data set of the file, as evaluation sees it."""
    spec = experiment.data[_known(name, experiment.data, "data set")]
    return (row_of(example) for example in prepare.load_data(spec, 0))


def contrast_rows(experiment: ExperimentSpec, name: str) -> Iterator[dict[str, Any]]:
    """Yield the contrast of directions: `{prompt, positive, negative}`, or `{messages, label}` where sides are no pairs."""
    spec = experiment.directions[_known(name, experiment.directions, "directions")]
    if spec.contrast is None:
        raise SpecError(f"the directions {name!r} are read from a file, so there is no contrast to export")
    if spec.contrast.of == "models":
        raise SpecError(
            f"the directions {name!r} contrast two models on the set {spec.contrast.chats!r}; export that set"
        )
    return rows_of_contrast(directions_step.contrast_of(spec.contrast, experiment))


def rows_of_contrast(contrast: Contrast) -> Iterator[dict[str, Any]]:
    """Yield a contrast as rows that `read_contrast` reads back."""
    if contrast.kind == "responses":
        for positive, negative in zip(contrast.positive, contrast.negative, strict=True):
            yield {
                "prompt": _messages(positive)[:-1],
                "positive": positive[-1]["content"],
                "negative": negative[-1]["content"],
            }
        return
    for label, chats in (("positive", contrast.positive), ("negative", contrast.negative)):
        for chat in chats:
            yield {"messages": _messages(chat), "label": label}


def write_rows(rows: Iterable[Mapping[str, Any]], out: Path) -> int:
    """Write rows as JSONL, whole or not at all; returns how many."""
    count = 0
    with replacing(out) as path, path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def _messages(chat: Chat) -> list[dict[str, Any]]:
    return [dict(message) for message in chat]


def _known(name: str, defined: Mapping[str, Any] | Sequence[str], what: str) -> str:
    if name not in defined:
        raise SpecError(f"no {what} is called {name!r}; available: {', '.join(defined) or 'none'}")
    return name


def _seed(experiment: ExperimentSpec, seed: int | None) -> int:
    if seed is not None and seed not in experiment.seeds:
        raise SpecError(f"seed {seed} is not one of the experiment's, {', '.join(map(str, experiment.seeds))}")
    return experiment.seeds[0] if seed is None else seed
