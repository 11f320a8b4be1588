"""Contrasts and prompts from files and hub datasets; an error names the row."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tropism.data import sources
from tropism.data.chats import Chat, Example
from tropism.data.sources.formats import read_objects, read_rows
from tropism.data.sources.rows import RowReader
from tropism.directions.contrasts import Contrast
from tropism.errors import DataError

SIDES = ("positive", "negative")

_LABELS = {
    "positive": True,
    "negative": False,
    "true": True,
    "false": False,
    "1": True,
    "0": False,
    "yes": True,
    "no": False,
}


def read_contrast(path: str | Path, columns: Mapping[str, str] | None = None) -> Contrast:
    """Read a contrast from a file of rows, in one of two forms.

    Response pairs: `{"prompt": TEXT or MESSAGES, "positive": TEXT, "negative": TEXT}`. Labelled chats:
    `{"messages": [...], "label": LABEL}`, with `positive`/`negative`, `true`/`false` or `1`/`0`. `columns` says what the file
    calls these: `{"positive": "chosen", "negative": "rejected"}`. Raises `DataError` naming the file and the row.
    """
    named = dict(columns or {})
    first = next(iter(read_rows(path)), None)
    if first is None:
        raise DataError(f"{path} is empty; a contrast needs at least one row")
    if isinstance(first[1], DataError):
        raise first[1]
    if named.keys() & set(SIDES) or "positive" in first[1]:
        return read_pairs(str(path), columns)
    return _labelled(path, named)


def read_pairs(
    source: str,
    columns: Mapping[str, str] | None = None,
    *,
    transform: Callable[[Example], Example] = lambda example: example,
    **options: Any,
) -> Contrast:
    """Read response pairs from a file, a folder or a hub dataset: the columns `positive` and `negative` beside a prompt.

    Args:
        columns: `{"positive": "chosen", "negative": "rejected"}`, and what a source takes.
        transform: applied to the answered prompt of either side.
        options: those of the source: `size`, `split`, `seed`, `subset`, `on_bad_row`.

    Raises `DataError` naming the row where a side is missing or empty, or the sides have different prompts.
    """
    named = {side: (columns or {}).get(side, side) for side in SIDES}
    others = {name: column for name, column in (columns or {}).items() if name not in SIDES}
    read = []
    for side in SIDES:
        beside = tuple(column for other, column in named.items() if other != side)
        chosen = {**others, "completion": named[side]}
        loaded = sources.load(source, columns=chosen, beside=beside, **options)
        read.append([transform(example) for example in loaded])
    for positive, negative in zip(*read, strict=True):
        for side, example in zip(SIDES, (positive, negative), strict=True):
            if not (example.response or "").strip():
                raise DataError(
                    f"{source}, row {example.id}: {side} must be a text that is not empty, found {example.response!r}"
                )
        if positive.prompt != negative.prompt:
            raise DataError(f"{source}, row {positive.id}: the two sides answer different prompts")
    positive, negative = ([str(example.response) for example in side] for side in read)
    return Contrast.of_responses([example.prompt for example in read[0]], positive=positive, negative=negative)


def prompts_of(chats: Sequence[Chat]) -> list[Chat]:
    """Return the chats up to their last answer, without a system message: the start of a contrast of system prompts."""
    prompts: list[Chat] = []
    for chat in chats:
        messages = [message for message in chat if message["role"] != "system"]
        prompts.append(messages[:-1] if messages[-1]["role"] == "assistant" else messages)
    return prompts


def _labelled(path: str | Path, columns: Mapping[str, str]) -> Contrast:
    name = columns.get("label", "label")
    reader = RowReader({key: column for key, column in columns.items() if key != "label"}, beside=(name,))
    chats, labels = [], []
    for where, row in read_objects(path):
        label = _LABELS.get(str(row.get(name)).lower())
        if label is None:
            raise DataError(
                f"{where}: a row is a pair {{prompt, positive, negative}} or a labelled chat {{messages, label}} with label "
                f"positive or negative (true or false, 1 or 0); found {name} {row.get(name)!r}"
            )
        chats.append(reader.example(row, where, where).content)
        labels.append(label)
    return Contrast.of_labelled(chats, labels)
