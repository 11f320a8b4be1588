"""Chats from a JSONL file or a folder of them; an error names the file and the line."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tropism.data.chats import Example, check_chat
from tropism.errors import DataError

MAX_LINE = 10_000_000
"""Characters in one line; a longer one is no chat but an accident."""


def read_jsonl(path: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each object of a JSONL file with `"FILE line N"`; raises `DataError` for a line that is not an object."""
    source = Path(path)
    if not source.is_file():
        raise DataError(f"no such file: {source}")
    try:
        with source.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                where = f"{source} line {number}"
                if not line.strip():
                    continue
                if len(line) > MAX_LINE:
                    raise DataError(f"{where}: {len(line)} characters, more than {MAX_LINE}; is this a JSONL file?")
                try:
                    row = json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise DataError(f"{where}: not JSON ({error}); each line must be one JSON object") from None
                if not isinstance(row, dict):
                    raise DataError(f"{where}: must be a JSON object, found {type(row).__name__}")
                yield where, row
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 text (byte {error.start})") from None


def example_of_row(
    row: Mapping[str, Any], where: str, default_id: str, columns: Mapping[str, str] | None = None
) -> Example:
    """A row `{messages}` or `{prompt, completion}` as an example; `columns` renames what the row calls them.

    `id`, `target` and `labels` are taken where the row has them.
    """
    names = dict(columns or {})

    def get(name: str) -> Any:
        return row.get(names.get(name, name))

    if get("messages") is not None:
        chat = check_chat(get("messages"), where)
    elif get("prompt") is not None:
        prompt, completion = get("prompt"), get("completion")
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if completion is not None and isinstance(before, list):
            after = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
            before = [*before, *after] if isinstance(after, list) else before
        chat = check_chat(before, where)
    else:
        raise DataError(
            f"{where}: a row needs 'messages', or 'prompt' with 'completion'; found the keys {', '.join(map(str, row)) or 'none'}"
            + ("" if columns else "; other names are mapped by columns: {messages: NAME}")
        )
    target, labels = get("target"), get("labels")
    if labels is not None and not isinstance(labels, Mapping):
        raise DataError(f"{where}: labels must be an object, found {type(labels).__name__}")
    identity = get("id")
    return Example(
        id=str(identity) if identity is not None else default_id,
        chat=chat,
        target=None if target is None else str(target),
        labels=dict(labels or {}),
    )


def jsonl(path: str | Path, *, columns: Mapping[str, str] | None = None) -> list[Example]:
    """The chats of a JSONL file."""
    name = Path(path).name
    return [
        example_of_row(row, where, f"{name}/{i}", columns) for i, (where, row) in enumerate(read_jsonl(path), start=1)
    ]


def folder(path: str | Path, split: str, *, columns: Mapping[str, str] | None = None) -> list[Example]:
    """The chats of `SPLIT.jsonl` in a folder."""
    file = Path(path) / f"{split}.jsonl"
    if not file.is_file():
        held = ", ".join(sorted(p.name for p in Path(path).glob("*.jsonl"))) or "no .jsonl files"
        raise DataError(f"folder {path} has no {split}.jsonl for split {split!r}; it has {held}")
    return jsonl(file, columns=columns)
