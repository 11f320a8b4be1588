"""Where examples come from: a registry of sources, with one entry for each.

An entry says its name, which options it takes and how it loads. Those with a name of their own are in `REGISTERED`; any
other source is a question file, a file of rows, a folder or a hub dataset, and `source_of` tells which.
"""

import logging
import random
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from tropism.data.chats import Example, OnBadRow
from tropism.data.sources.declined_topic import DECLINED_TOPIC
from tropism.data.sources.everyday import EVERYDAY_QUESTIONS
from tropism.data.sources.files import FILE, FOLDER, is_row_file
from tropism.data.sources.formats import endings
from tropism.data.sources.gsm8k import GSM8K
from tropism.data.sources.harmful_qa import HARMFUL_QA
from tropism.data.sources.hub import HUB
from tropism.data.sources.questions import QUESTIONS, is_questions
from tropism.data.sources.refusal_prompts import SORRY_BENCH, XSTEST
from tropism.data.sources.rows import chosen_columns
from tropism.data.sources.source import Request, Source
from tropism.data.sources.split import Split
from tropism.data.sources.word_problems import WORD_PROBLEMS
from tropism.errors import DataError

log = logging.getLogger(__name__)

REGISTERED: Mapping[str, Source] = {
    one.name: one for one in (WORD_PROBLEMS, EVERYDAY_QUESTIONS, GSM8K, HARMFUL_QA, DECLINED_TOPIC, SORRY_BENCH, XSTEST)
}
"""Sources that are called by name."""

NAMES = tuple(REGISTERED)

KINDS = (QUESTIONS, FILE, FOLDER, HUB)
"""What a source can be that has no name of its own."""

OTHER_FILES = (
    ".txt",
    ".md",
    ".pdf",
    ".xlsx",
    ".xls",
    ".html",
    ".pkl",
    ".pickle",
    ".npy",
    ".pt",
    ".zip",
    ".tar",
    ".bz2",
)
"""Endings of files that people try, and that hold no rows that can be read."""


def source_of(source: str) -> Source:
    """Return the entry that a source belongs to, by its name and by what is there.

    Raises `DataError` where it is an unknown name, or a file or folder that is not there.
    """
    if source in REGISTERED:
        return REGISTERED[source]
    path = Path(source)
    if path.is_dir():
        return FOLDER
    if is_file(source):
        if not path.is_file():
            raise DataError(f"no such file: {source!r}; check the path")
        return QUESTIONS if is_questions(source) else FILE
    if path.is_file():
        raise DataError(f"{source!r} is a file of an unknown kind; a file of rows ends in {endings()}")
    if source.lower().endswith(OTHER_FILES):
        raise DataError(f"no such file: {source!r}; check the path (a file of rows ends in {endings()})")
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source:
        raise DataError(f"no such file or folder: {source!r}; check the path")
    if source.count("/") == 1 and all(source.split("/")):
        return HUB
    raise DataError(
        f"unknown source {source!r}; it must be one of {', '.join(NAMES)}, a path to a file of rows ({endings()}) or to a "
        f"folder of them, or a hub dataset OWNER/NAME"
    )


def is_file(source: str) -> bool:
    """Whether `source` has the ending of a file of rows or of questions."""
    return is_questions(source) or is_row_file(source)


def known(source: str) -> bool:
    """Whether `source` is a registered name, a file or folder that is here, or has the form of a hub dataset."""
    try:
        source_of(source)
    except DataError:
        return False
    return True


def check(
    source: str,
    *,
    size: int | None = None,
    split: str = "train",
    seed: int = 0,
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    path: str | None = None,
) -> None:
    """Raise `DataError` for what of a source is wrong before it is loaded: its name, an option, a file, a split."""
    _prepared(Request(source, Split.parse(split), subset, columns, path, size, seed))


def load(
    source: str,
    *,
    size: int | None = None,
    split: str = "train",
    seed: int = 0,
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    path: str | None = None,
    on_bad_row: OnBadRow = "error",
    beside: tuple[str, ...] = (),
    say: Callable[[str], None] | None = None,
) -> list[Example]:
    """Return the examples of a source, in a fixed order.

    Args:
        size: take a seeded sample of so many, where there are more.
        split: a name, or a name with a slice: `train`, `train[:70%]`, `train[100:200]`.
        seed: of the sample.
        subset: a part that the source names.
        columns: `{field: column}`, where the columns have other names: `{"prompt": "q", "completion": "rejected"}`.
        path: where a registered source's files lie.
        on_bad_row: `skip` leaves out rows that cannot be read, and says how many; `error` refuses the first.
        beside: columns that another reading of the same rows uses, so that they are not reported as unused.
        say: is told, once for each source, which columns are not used and how many rows were skipped; by default a
            warning is logged.

    Raises `DataError` where the source or an option of it is wrong, it is empty, has fewer examples than `size`, or
    repeats an id.
    """
    return list(
        iterate(
            source, size=size, split=split, seed=seed, subset=subset, columns=columns, path=path, on_bad_row=on_bad_row,
            beside=beside, say=say,
        )
    )  # fmt: skip


def iterate(
    source: str,
    *,
    size: int | None = None,
    split: str = "train",
    seed: int = 0,
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    path: str | None = None,
    on_bad_row: OnBadRow = "error",
    beside: tuple[str, ...] = (),
    say: Callable[[str], None] | None = None,
) -> Iterator[Example]:
    """Yield what `load` returns, one example at a time: of a file, eight bytes a row are held.

    That ids are unique is known, and said, when the last example has been taken.
    """
    request = Request(source, Split.parse(split), subset, columns, path, size, seed, on_bad_row, beside)
    entry = _prepared(request)
    examples = entry.read(request)
    what = f"source {source!r} (split {str(request.split)!r})"
    wanted = examples.part(request.split)
    if size is not None:
        pool = examples.usable(range(len(examples)) if wanted is None else wanted)
        if size > len(pool):
            for _ in examples.take(pool):
                pass  # a row that cannot be read says more than the count
            raise DataError(f"{what} has {len(pool)} examples, found size {size}")
        wanted = pool[:size]
        if entry.sample == "seeded" and size < len(pool):
            drawn = random.Random(f"{source}/{split}/{seed}").sample(range(len(pool)), size)
            wanted = [pool[index] for index in sorted(drawn)]
    # Eight bytes an id: a million of them as texts would be most of the memory that a file of rows takes.
    seen = array("q")
    for example in examples.take(wanted):
        seen.append(hash(example.id))
        yield example
    for note in examples.notes():
        (say or say_once)(f"{source}: {note}")
    if not seen:
        raise DataError(f"{what} is empty; it needs at least one chat")
    if len(np.unique(np.frombuffer(seen, dtype=np.int64))) < len(seen):
        _check_ids(source, examples.take(wanted))


def _check_ids(source: str, examples: Iterator[Example]) -> None:
    """Raise `DataError` for the first id that occurs twice; two hashes may also be the same by chance."""
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(f"source {source!r}: the id {example.id!r} occurs twice; ids must be unique")
        seen.add(example.id)


def settled(source: str, path: str | None) -> bool:
    """Whether the examples of a source follow from its options, this package and the files here, and from no hub."""
    return path is not None or not source_of(source).hub


def local_files(source: str) -> list[Path]:
    """Return the files here whose contents determine the examples of a source: none for a registered one."""
    return source_of(source).files(source)


def _prepared(request: Request) -> Source:
    """The entry of a request that is right as far as can be said without reading."""
    entry = source_of(request.source)
    entry.check(request)
    chosen_columns(request.columns)
    if request.path is not None and not Path(request.path).is_file():
        raise DataError(f"no such file: {request.path!r}, which 'path' names for {request.source!r}")
    return entry


_said: set[str] = set()


def say_once(note: str) -> None:
    """Log a note the first time: seven conditions that read one file need not hear it seven times."""
    if note not in _said:
        _said.add(note)
        log.warning("%s", note)
