"""Contrasts and prompts from JSONL files; an error names the file and the line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tropism.data.chats import Chat
from tropism.data.sources.formats import read_objects
from tropism.data.sources.rows import example_of_row
from tropism.directions.contrasts import Contrast, Prompt
from tropism.errors import DataError

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


def read_contrast(path: str | Path) -> Contrast:
    """A contrast from a JSONL file, in one of two forms.

    Response pairs: `{"prompt": TEXT or MESSAGES, "positive": TEXT, "negative": TEXT}`. Labelled chats:
    `{"messages": [...], "label": LABEL}`, with `positive`/`negative`, `true`/`false` or `1`/`0`. Raises `DataError`
    naming the file and the line.
    """
    rows = list(read_objects(path))
    if not rows:
        raise DataError(f"{path} is empty; a contrast needs at least one row")
    paired = "positive" in rows[0][1]
    if paired:
        prompts, positive, negative = [], [], []
        for where, row in rows:
            prompts.append(_prompt(row, where))
            positive.append(_text(row, "positive", where))
            negative.append(_text(row, "negative", where))
        return Contrast.of_responses(prompts, positive=positive, negative=negative)
    chats, labels = [], []
    for where, row in rows:
        label = _LABELS.get(str(row.get("label")).lower())
        if label is None:
            raise DataError(
                f"{where}: a row is a pair {{prompt, positive, negative}} or a labelled chat {{messages, label}} with "
                f"label "
                f"positive or negative (true or false, 1 or 0); found label {row.get('label')!r}"
            )
        chats.append(example_of_row(row, where, where).chat)
        labels.append(label)
    return Contrast.of_labelled(chats, labels)


def prompts_of(chats: Sequence[Chat]) -> list[Chat]:
    """The chats up to their last answer, without a system message: what a contrast of system prompts starts from."""
    prompts: list[Chat] = []
    for chat in chats:
        messages = [message for message in chat if message["role"] != "system"]
        prompts.append(messages[:-1] if messages[-1]["role"] == "assistant" else messages)
    return prompts


def _prompt(row: Mapping[str, Any], where: str) -> Prompt:
    prompt = row.get("prompt")
    if not isinstance(prompt, str | list):
        raise DataError(f"{where}: prompt must be a text or a list of messages, found {type(prompt).__name__}")
    return prompt


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} must be a text that is not empty, found {value!r}")
    return value
