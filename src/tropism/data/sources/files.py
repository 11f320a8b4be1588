"""A file of rows, and a folder of such files or of a dataset that `datasets` saved."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from tropism.data.sources.formats import (
    FORMATS,
    Read,
    count_rows,
    endings,
    existing,
    format_of,
    picked,
    read_rows,
    stem_of,
)
from tropism.data.sources.source import Examples, Request, Source
from tropism.data.sources.table import Table
from tropism.errors import DataError

FILE_SPLIT = "train"
"""The split that a file is."""

_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")
_SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` of a dataset, and of a dictionary of them, leaves in its folder."""


def file_examples(request: Request) -> Examples:
    """Return the examples of a file; the ids of rows without one are the file's name and the row's number, from 1."""
    path = existing(request.source)
    check_file_split(request)
    return Table(
        request,
        lambda wanted: read_rows(path, wanted),
        lambda: count_rows(path),
        lambda index: f"{path.name}/{index + 1}",
    )


def check_file_split(request: Request) -> None:
    """Raise `DataError` where another split is asked of a file than the one that it is."""
    if request.split.name != FILE_SPLIT:
        raise DataError(
            f"file {request.source} is the split {FILE_SPLIT!r} and has no split {request.split.name!r}; take a part of "
            f"it by a slice, as in {FILE_SPLIT}[90%:], or name a file for {request.split.name!r} as the source"
        )


def folder_examples(request: Request) -> Examples:
    """Return the examples of a split of a folder: of the file or the shards of that name, or of a saved dataset."""
    folder = Path(request.source)
    if _is_saved(folder):
        return _saved_examples(request, folder)
    files = split_files(folder, request.split.name)
    name = files[0].name if len(files) == 1 else request.split.name

    def read(wanted: Iterator[int] | None) -> Iterator[Read]:
        if len(files) == 1:
            return read_rows(files[0], wanted)
        rows = chain.from_iterable(read_rows(file) for file in files)
        return rows if wanted is None else picked(rows, wanted)

    return Table(request, read, lambda: sum(count_rows(file) for file in files), lambda index: f"{name}/{index + 1}")


def split_files(folder: Path, split: str) -> list[Path]:
    """Return the files of a split: `SPLIT.jsonl` (or another format), or the shards `SPLIT-00000-of-00002.parquet`.

    They lie in the folder or, as in a copy of a hub repository, in its folder `data`. Raises `DataError` where there
    are none, or several files have that name.
    """
    held = row_files(folder)
    whole = [file for file in held if stem_of(file) == split]
    shards = [file for file in held if (match := _SHARD.fullmatch(stem_of(file))) and match["split"] == split]
    if len(whole) > 1 or (whole and shards):
        names = ", ".join(file.name for file in whole + shards)
        raise DataError(f"folder {folder} has several files for the split {split!r}: {names}; name one as the source")
    if not whole and not shards:
        names = ", ".join(file.name for file in held) or f"no file that ends in {endings()}"
        raise DataError(f"folder {folder} has no file for the split {split!r}; it has {names}")
    return whole or shards


def row_files(folder: Path) -> list[Path]:
    """Return the files of rows in a folder, or else in its folder `data`, in the order of their names."""
    for place in (folder, folder / "data"):
        if place.is_dir():
            held = sorted(file for file in place.iterdir() if file.is_file() and format_of(file) is not None)
            if held:
                return held
    return []


def is_row_file(source: str) -> bool:
    """Whether `source` has the ending of a file of rows."""
    return format_of(source) is not None


def _folder_files(source: str) -> list[Path]:
    folder = Path(source)
    if _is_saved(folder):
        return sorted(file for file in folder.rglob("*") if file.is_file())
    return row_files(folder)


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED)


def _saved_examples(request: Request, folder: Path) -> Examples:
    """The examples of what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    import datasets

    from tropism.data.sources.hub import dataset_examples

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"folder {folder} looks like a saved dataset and cannot be loaded: {error}") from None
    if isinstance(loaded, datasets.DatasetDict):
        if request.split.name not in loaded:
            raise DataError(
                f"folder {folder} has no split {request.split.name!r}; it has {', '.join(map(str, loaded))}"
            )
        loaded = loaded[request.split.name]
    else:
        check_file_split(request)
    return dataset_examples(request, loaded, f"{folder.name}/{request.split.name}", str(folder))


FILE = Source(
    name="a file of rows",
    about=f"a path that ends in {', '.join(ending for one in FORMATS for ending in one.endings)}",
    takes=("split", "columns", "size", "seed"),
    read=file_examples,
    files=lambda source: [Path(source)],
)

FOLDER = Source(
    name="a folder",
    about="a folder with a file of rows for each split, or a dataset that datasets saved",
    takes=("split", "columns", "size", "seed"),
    read=folder_examples,
    files=_folder_files,
)
