"""Examples that are read from rows when they are asked for: files, folders and hub datasets share this."""

from collections.abc import Callable, Iterator, Sequence

from tropism.data.chats import Example
from tropism.data.sources.formats import Read
from tropism.data.sources.rows import RowReader
from tropism.data.sources.source import Request
from tropism.data.sources.split import Split
from tropism.errors import DataError


class Table:
    """The rows of a split as examples.

    Args:
        request: for its `columns` and `on_bad_row`.
        read: yields the rows, or those at increasing indices.
        count: returns how many rows there are.
        ids: the id of a row that brings none, by its index from 0.
    """

    def __init__(
        self,
        request: Request,
        read: Callable[[Iterator[int] | None], Iterator[Read]],
        count: Callable[[], int],
        ids: Callable[[int], str],
    ) -> None:
        self._request, self._read, self._count, self._ids = request, read, count, ids
        self._rows = RowReader(request.columns, request.beside)
        self._bad: list[str] = []

    def __len__(self) -> int:
        return self._count()

    def part(self, split: Split) -> Sequence[int] | None:
        """Return the indices of a slice; rows are counted only where there is one."""
        return split.rows(len(self)) if split.sliced else None

    def take(self, wanted: Sequence[int] | None) -> Iterator[Example]:
        """Yield the examples; a row that cannot be read raises `DataError`, or is skipped and counted."""
        for _, found in self._numbered(wanted, self._rows):
            if isinstance(found, Example):
                yield found
            elif self._request.on_bad_row == "error":
                raise found
            else:
                self._bad.append(str(found))
        self._rows.check_columns_seen(self._request.source)

    def usable(self, wanted: Sequence[int]) -> Sequence[int]:
        """Return those of `wanted` whose rows can be read, where the others are skipped."""
        if self._request.on_bad_row == "error":
            return wanted
        tried = RowReader(self._request.columns)
        return [index for index, found in self._numbered(wanted, tried) if isinstance(found, Example)]

    def notes(self) -> list[str]:
        """Return the columns that were not used, and how many rows were skipped, with the first reason."""
        notes = self._rows.notes()
        if self._bad:
            notes.append(f"{len(self._bad)} rows that cannot be read are skipped, the first: {self._bad[0]}")
        return notes

    def _numbered(self, wanted: Sequence[int] | None, rows: RowReader) -> Iterator[tuple[int, Example | DataError]]:
        read = self._read(None if wanted is None else iter(wanted))
        for place, (where, row) in enumerate(read):
            index = place if wanted is None else wanted[place]
            if isinstance(row, DataError):
                yield index, row
                continue
            try:
                yield index, rows.example(row, where, self._ids(index))
            except DataError as error:
                yield index, error
