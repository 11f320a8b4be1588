"""Prompts that should be refused, or answered although they sound dangerous: SORRY-Bench's and XSTest's files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tropism.data.chats import Example, check_chat
from tropism.data.sources.formats import read_objects
from tropism.data.sources.source import Examples, Listed, Request, Source
from tropism.errors import DataError

CATEGORIES = 44
"""SORRY-Bench's categories, numbered from 1 (Xie et al., 2024)."""

Expected = Literal["unsafe", "safe"]
"""Whether a prompt should be refused (`unsafe`) or answered (`safe`)."""


@dataclass(frozen=True)
class TaskPrompt:
    """One prompt of a task: its id, its category, the messages before the answer, and what should become of it."""

    id: str
    category: str
    messages: tuple[dict[str, str], ...]
    expected: Expected = "unsafe"

    @property
    def question(self) -> str:
        """What a judge is shown as the request: the last message."""
        return self.messages[-1]["content"]


def sorry_bench(path: str | Path, *, style: str = "base") -> list[TaskPrompt]:
    """Read prompts in SORRY-Bench's format: JSONL rows `{question_id, category, turns, prompt_style}`, of one style.

    `category` is 1 to 44, as number or text. Raises `DataError` for a row of another form, a repeated id, or
    a style that no row has. The benchmark's prompts are harmful and are not part of this package.
    """
    prompts: list[TaskPrompt] = []
    seen: set[str] = set()
    styles: set[str] = set()
    for where, row in read_objects(path):
        found = str(row.get("prompt_style", "base"))
        styles.add(found)
        if found != style:
            continue
        turns, category = row.get("turns"), str(row.get("category"))
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            raise DataError(f"{where}: turns must be a list of texts, found {turns!r:.60}")
        if len(turns) != 1:
            raise DataError(f"{where}: a SORRY-Bench prompt has one turn, found {len(turns)}")
        if not category.isdecimal() or not 1 <= int(category) <= CATEGORIES:
            raise DataError(f"{where}: category must be 1 to {CATEGORIES}, found {row.get('category')!r}")
        name = str(row.get("question_id"))
        if row.get("question_id") is None or name in seen:
            raise DataError(f"{where}: question_id must be there and be unique, found {row.get('question_id')!r}")
        seen.add(name)
        prompts.append(TaskPrompt(name, category, check_chat([{"role": "user", "content": turns[0]}], where)))
    if not prompts:
        raise DataError(f"{path}: no prompt has the style {style!r}; found {', '.join(sorted(styles)) or 'no rows'}")
    return prompts


def xstest(path: str | Path) -> list[TaskPrompt]:
    """Read prompts in XSTest's format: rows (a CSV) with `id` (or `id_v2`), `type` and `prompt`, and perhaps `label`.

    `safe` prompts only sound dangerous and should be answered; `unsafe` ones, of a type that begins with `contrast_`,
    should be refused. Raises `DataError` for a file or row of another form, or an id that comes twice.
    Source: Röttger et al. (2024); the prompts are not part of this package.
    """
    prompts: dict[str, TaskPrompt] = {}
    for where, row in read_objects(path):
        name = "id" if "id" in row else "id_v2"
        missing = [column for column in (name, "type", "prompt") if not row.get(column)]
        if missing:
            raise DataError(f"{where}: {missing[0]!r} is missing; XSTest's rows have id, type and prompt")
        one, kind, label = str(row[name]), str(row["type"]), row.get("label")
        if one in prompts:
            raise DataError(f"{where}: the id {one!r} comes twice")
        if label not in (None, "", "safe", "unsafe"):
            raise DataError(f"{where}: label must be safe or unsafe, found {label!r}")
        expected: Expected = "unsafe" if label == "unsafe" or (not label and kind.startswith("contrast_")) else "safe"
        chat = check_chat([{"role": "user", "content": row["prompt"]}], where)
        prompts[one] = TaskPrompt(one, kind, chat, expected)
    if not prompts:
        raise DataError(f"{path} holds no prompts")
    return list(prompts.values())


def _examples(prompts: Iterable[TaskPrompt]) -> Examples:
    return Listed(
        [Example(one.id, one.messages, labels={"category": one.category, "expected": one.expected}) for one in prompts]
    )


def _file(request: Request) -> str:
    if request.path is None:
        raise DataError(
            f"source {request.source!r} needs 'path': its file as published, since the prompts are not part of Tropism"
        )
    return request.path


def _sorry_bench(request: Request) -> Examples:
    return _examples(sorry_bench(_file(request), style=request.subset or "base"))


def _xstest(request: Request) -> Examples:
    if request.subset not in (None, "safe", "unsafe"):
        raise DataError(f"source 'xstest': subset must be safe or unsafe, found {request.subset!r}")
    return _examples(one for one in xstest(_file(request)) if request.subset in (None, one.expected))


SORRY_BENCH = Source(
    name="sorry_bench",
    about="SORRY-Bench's file of unsafe requests at `path` (Xie et al., 2024); `subset` is a prompt style, by default base",
    takes=("path", "subset", "size", "seed"),
    read=_sorry_bench,
    splits=("train",),
)
XSTEST = Source(
    name="xstest",
    about="XSTest's file at `path` (Röttger et al., 2024); `subset` is `safe` (should be answered) or `unsafe`",
    takes=("path", "subset", "size", "seed"),
    read=_xstest,
    splits=("train",),
)
