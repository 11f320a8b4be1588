"""A row of a data set as an example: which of its columns is the chat, the prompt, the response, the label.

| shape | columns |
|---|---|
| a chat | `messages`, `conversations`, `conversation`, `turns` or `chat`: messages, or their JSON |
| a pair | `prompt`, `question`, `instruction` or `query` with `completion`, `response`, `answer` or `output` |
| Alpaca | `instruction`, `input` (may be empty), `output`; the input follows the instruction after an empty line |
| a preference | `chosen` and `rejected`, with or without `prompt`; `chosen` is the response unless `columns` says otherwise |
| a question | a prompt alone: something to answer, nothing to learn |
| raw text | `text` |

Beside these `system` (or `system_prompt`), `tools`, `id`, `target`, `labels` and `route`. A row that can be read in two ways is
refused, and columns that are not used are reported.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tropism.data.chats import Example, check_chat, check_unicode, with_tools
from tropism.data.routes import route_name
from tropism.data.sources.messages import messages_of, parsed, side, transcript
from tropism.errors import DataError

Row = Mapping[str, Any]

FIELDS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "turns", "chat"),
    "prompt": ("prompt", "question", "instruction", "query"),
    "input": ("input", "context"),
    "completion": ("completion", "response", "answer", "output", "chosen"),
    "text": ("text",),
    "system": ("system", "system_prompt"),
    "id": ("id",),
    "target": ("target",),
    "labels": ("labels",),
    "route": ("route", "labels.route"),
    "tools": ("tools",),
}
"""What an example is made of → the columns that hold it, by the names that data sets give them."""

BOOKKEEPING = ("provenance",)
"""Columns that Tropism itself writes, and does not read back."""

_FINAL = re.compile(r"####\s*(-?\$?\d[\d,]*(?:\.\d+)?)\s*%?\.?\s*\Z")


def field_of(name: str) -> str:
    """Return the field that a key of `columns` stands for; raises `DataError` for an unknown one.

    >>> field_of("answer")
    'completion'
    """
    for one, names in FIELDS.items():
        if name in names:
            return one
    known = ", ".join(FIELDS)
    raise DataError(
        f"columns: {name!r} is nothing that a row is read for; available: {known}, as in {{prompt: my_column}}"
    )


def chosen_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Return `{field: column}` from an option `columns`; raises `DataError` where a key is unknown or said twice."""
    chosen: dict[str, str] = {}
    for name, column in (columns or {}).items():
        one = field_of(name)
        if one in chosen:
            raise DataError(f"columns: {name!r} gives the {one} a second time; keep one of the two")
        chosen[one] = column
    return chosen


@dataclass(frozen=True)
class Layout:
    """Which column of a row holds which field, and which columns hold none."""

    columns: Mapping[str, str]
    unused: tuple[str, ...]


@dataclass
class RowReader:
    """Reads rows of one source; remembers which columns it did not use, and which of `columns` it never saw.

    Args:
        columns: `{field: column}`, for columns that have other names: `{"prompt": "q", "completion": "rejected"}`.
        beside: columns that another reading uses, and that are not reported.
    """

    columns: Mapping[str, str] | None = None
    beside: Sequence[str] = ()
    unused: dict[str, None] = field(default_factory=dict)
    """Names of columns that were not used, in the order of the rows."""

    def __post_init__(self) -> None:
        self._chosen = chosen_columns(self.columns)
        self._layouts: dict[tuple[str, ...], Layout] = {}

    def example(self, row: Row, where: str, default_id: str) -> Example:
        """Read a row; raises `DataError` that begins with `where` and says what is wrong."""
        layout = self._layout(row, where)
        values = {name: row[column] for name, column in layout.columns.items()}
        labels = _labels(values, where)
        target, identity = _filled(values, "target"), _filled(values, "id")
        name = default_id if identity is None else _identity(identity, where)
        if "text" in values:
            text = values["text"]
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{where}: text must be a text that is not empty, found {text!r:.60}")
            return Example(name, (), None if target is None else str(target), labels, text)
        chat = with_tools(check_chat(_chat(values, where), where), _filled(values, "tools"), where)
        if (tools := _filled(values, "tools")) is not None:
            chat = with_tools(chat, tools, where)
        if target is None and chat[-1]["role"] == "assistant":
            target = final_answer(chat[-1]["content"])
        return Example(name, chat, None if target is None else str(target), labels)

    def notes(self) -> list[str]:
        """Return what a person should know of how the rows were read."""
        if not self.unused:
            return []
        notes = [f"columns that are not used: {', '.join(self.unused)}"]
        if "rejected" in self.unused and any("chosen" in layout.columns.values() for layout in self._layouts.values()):
            notes.append("the response is 'chosen'; columns: {completion: rejected} takes the other side")
        return notes

    def check_columns_seen(self, source: str) -> None:
        """Raise `DataError` where `columns` names a column that no row had; to be called after the last row."""
        if not self._layouts:
            return
        seen = {column for layout in self._layouts.values() for column in (*layout.columns.values(), *layout.unused)}
        for name, column in self._chosen.items():
            if column not in seen:
                raise DataError(
                    f"source {source!r}: columns maps {name} to {column!r}, and no row has that column; the rows have "
                    f"{', '.join(sorted(seen))}"
                )

    def _layout(self, row: Row, where: str) -> Layout:
        present = tuple(name for name, value in row.items() if value is not None)
        if present not in self._layouts:
            layout = layout_of(row, present, self._chosen, where)
            self._layouts[present] = layout
            self.unused.update(dict.fromkeys(name for name in layout.unused if name not in self.beside))
        return self._layouts[present]


def example_of_row(row: Row, where: str, default_id: str, columns: Mapping[str, str] | None = None) -> Example:
    """Read one row by itself; `RowReader` reads many, and reports the columns that it did not use.

    >>> example_of_row({"question": "2 + 3?", "answer": "It is 5.\\n#### 5"}, "line 1", "a").target
    '5'
    """
    return RowReader(columns).example(row, where, default_id)


def layout_of(row: Row, present: Sequence[str], chosen: Mapping[str, str], where: str) -> Layout:
    """Decide which columns of a row are read; `chosen` are those that the user named.

    Raises `DataError` where a named column is missing, two columns could be the same field, or nothing can be read.
    """
    for name in ("messages", "prompt", "completion", "text"):
        if name in chosen and chosen[name] not in present:
            raise DataError(
                f"{where}: columns maps {name} to {chosen[name]!r}, which the row does not have; it has the keys "
                f"{', '.join(map(str, row)) or 'none'}"
            )
    free = [name for name in present if name not in chosen.values()]

    def pick(name: str) -> str | None:
        if name in chosen:
            return chosen[name] if chosen[name] in present else None
        held = [column for column in FIELDS[name] if column in free]
        if len(held) > 1:
            raise DataError(
                f"{where}: {' and '.join(held)} could each be the {name}; say which one by columns: {{{name}: {held[0]}}}"
            )
        return held[0] if held else None

    found = {name: column for name in _content_fields(row, chosen, pick) if (column := pick(name)) is not None}
    if not found.keys() & {"messages", "prompt", "completion", "text", "input"}:
        raise DataError(
            f"{where}: a row needs a chat ('messages'), a prompt with its response, or 'text'; found the keys "
            f"{', '.join(map(str, row)) or 'none'}; other names are mapped by columns: {{prompt: NAME, completion: NAME}}"
        )
    of_chats = () if "text" in found else ("system", "tools")
    for name in ("id", "target", "labels", "route", *of_chats):
        if (column := pick(name)) is not None:
            found[name] = column
    used = {*found.values(), *BOOKKEEPING}
    return Layout(found, tuple(name for name in present if name not in used))


def final_answer(response: Any) -> str | None:
    """Return the number of a response that ends in `#### N`, as GSM8K writes its answers; None for any other."""
    match = _FINAL.search(response) if isinstance(response, str) else None
    return None if match is None else match[1].replace(",", "").replace("$", "")


def _content_fields(row: Row, chosen: Mapping[str, str], pick: Callable[[str], str | None]) -> tuple[str, ...]:
    """The fields that make the example: the named ones, else the chat, else the pair, else the text."""
    pair = ("prompt", "input", "completion")
    if "text" in chosen:
        return ("text",)
    if "messages" in chosen:
        return ("messages",)
    if "prompt" in chosen or "completion" in chosen:
        return pair
    chat = pick("messages")
    if chat is not None and isinstance(row[chat], list | tuple | str):
        return ("messages",)
    if pick("prompt") is not None or pick("completion") is not None or pick("input") == "input":
        return pair
    return ("text",)


def _chat(values: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The messages of a row: of its chat, or of its prompt and response, with its system message in front."""
    chat = messages_of(values["messages"], where) if "messages" in values else _pair(values, where)
    system = _filled(values, "system")
    if system is None:
        return chat
    first = chat[0] if chat else None
    if first is not None and first["role"] == "system":
        if first["content"] != system:
            raise DataError(f"{where}: the chat has a system message, and a column another one; keep one of the two")
        return chat
    return [{"role": "system", "content": system}, *chat]


def _pair(values: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    prompt, more, response = values.get("prompt"), _filled(values, "input"), values.get("completion")
    if prompt is None:
        prompt, more = more, None
    if more is not None:
        if not isinstance(prompt, str) or not isinstance(more, str):
            raise DataError(f"{where}: an input follows an instruction that is a text, found {type(prompt).__name__}")
        prompt = f"{prompt}\n\n{more}"
    after = [] if response is None else side(_text(response), "assistant", where)
    if prompt is None:
        # A preference pair may hold whole chats, without its prompt apart.
        whole = transcript(response) if isinstance(response, str) else after
        if not whole or whole[0]["role"] == "assistant":
            raise DataError(f"{where}: a response needs its prompt; map it by columns: {{prompt: NAME}}")
        return whole
    if after and after[0]["role"] != "assistant":
        return after
    if isinstance(prompt, str) and prompt.startswith("\n\nHuman:") and (before := transcript(prompt)):
        # Such a prompt ends with an empty answer, the invitation to write it.
        return [*(before[:-1] if not before[-1]["content"].strip() else before), *after]
    return [*side(_text(prompt), "user", where), *after]


def _text(value: Any) -> Any:
    """A whole number as its text: an answer column often holds numbers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _filled(values: Mapping[str, Any], name: str) -> Any:
    """A value that may be left out; a table's empty cell counts as left out."""
    value = values.get(name)
    return None if isinstance(value, str) and not value.strip() else value


def _identity(value: Any, where: str) -> str:
    name = str(value)
    check_unicode(name, f"{where}: id")
    return name


def _labels(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The labels of a row, with its route by name."""
    labels = _filled(values, "labels")
    if isinstance(labels, str):
        labels = parsed(labels, where)
    if labels is not None and not isinstance(labels, Mapping):
        raise DataError(f"{where}: labels must be an object, found {type(labels).__name__}")
    held = {name: value for name, value in (labels or {}).items() if value is not None}
    if "route" in held:
        held["route"] = route_name(held["route"], where)
    given = _filled(values, "route")
    if given is not None:
        name = route_name(given, where)
        if held.setdefault("route", name) != name:
            raise DataError(f"{where}: the column says route {name!r}, and labels say {held['route']!r}; keep one")
    return held
