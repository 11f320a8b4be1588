"""What a source is: its name, the options that it takes, and how it loads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from tropism.data.chats import Example, OnBadRow
from tropism.data.sources.split import Split
from tropism.errors import DataError

OPTIONS = ("split", "subset", "columns", "path", "size", "seed")
"""Every option that some source takes."""


@dataclass(frozen=True)
class Request:
    """What is asked of a source: the options of a data set in an experiment file.

    Args:
        source: the source as written: a registered name, a path, or OWNER/NAME.
        split: which split, and which of its rows.
        subset: a part that the source itself names.
        columns: `{field: column}`, where columns have other names than ours.
        path: where a registered source's files lie.
        size: how many examples; a sample where there are more.
        seed: of the sample.
        on_bad_row: whether a row that cannot be read is an error, or is skipped and counted.
        beside: columns that another reading of the same rows uses, so that they are not reported as unused.
    """

    source: str
    split: Split
    subset: str | None = None
    columns: Mapping[str, str] | None = None
    path: str | None = None
    size: int | None = None
    seed: int = 0
    on_bad_row: OnBadRow = "error"
    beside: tuple[str, ...] = ()

    def given(self) -> dict[str, Any]:
        """Return the options that were given, by name. A seed of 0 is the one that is used where none is given."""
        values = {name: getattr(self, name) for name in OPTIONS if name != "split"}
        return {name: value for name, value in values.items() if value is not None and (name, value) != ("seed", 0)}


class Examples(Protocol):
    """The examples of a split in a fixed order. Any of them can be had without holding the others."""

    def __len__(self) -> int: ...

    def part(self, split: Split) -> Sequence[int] | None:
        """Return the indices of a slice; None, where there is no slice, for all."""

    def take(self, wanted: Sequence[int] | None) -> Iterator[Example]:
        """Yield all examples, or those at increasing indices."""

    def usable(self, wanted: Sequence[int]) -> Sequence[int]:
        """Return the indices of which examples can be made: all, unless bad rows are skipped."""

    def notes(self) -> list[str]:
        """Return what a person should know of how the examples taken so far were read."""


@dataclass(frozen=True)
class Listed:
    """Examples that are in memory already."""

    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.examples)

    def part(self, split: Split) -> Sequence[int] | None:
        return split.rows(len(self)) if split.sliced else None

    def take(self, wanted: Sequence[int] | None) -> Iterator[Example]:
        if wanted is None:
            yield from self.examples
        else:
            yield from (self.examples[index] for index in wanted)

    def usable(self, wanted: Sequence[int]) -> Sequence[int]:
        return wanted

    def notes(self) -> list[str]:
        return []


@dataclass(frozen=True)
class Source:
    """A registered source, or a kind of file.

    Args:
        name: what a file calls it; for kinds of files, what a message calls it.
        about: one line for the docs.
        takes: which of `OPTIONS` it takes.
        read: the examples that a request asks for, before its slice and its size are applied.
        splits: the names of its splits, None where they depend on the data.
        hub: whether the rows come from the hub where no `path` is given, so that what is there decides and not a file here.
        sample: how `size` picks from more examples: a seeded sample, or the first so many.
        files: the local files whose contents determine the examples.
        prompts: the split and the subset whose prompts are there to be answered anew.
    """

    name: str
    about: str
    takes: tuple[str, ...]
    read: Callable[[Request], Examples]
    splits: tuple[str, ...] | None = None
    hub: bool = False
    sample: Literal["seeded", "first"] = "seeded"
    files: Callable[[str], list[Path]] = lambda source: []
    prompts: tuple[str, str | None] = ("train", None)

    def check(self, request: Request) -> None:
        """Raise `DataError` where the request has an option that this source does not take, or an unknown split."""
        for option, value in request.given().items():
            if option not in self.takes:
                raise DataError(
                    f"source {request.source!r} ({self.name}) does not take {option!r}, found {option}: {value!r}; it takes "
                    f"{', '.join(self.takes)}"
                )
        if self.splits is not None and request.split.name not in self.splits:
            raise DataError(
                f"source {request.source!r} has no split {request.split.name!r}; it has {', '.join(self.splits)}"
            )
