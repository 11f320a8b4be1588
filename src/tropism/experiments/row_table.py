"""Rendered rows in an Arrow file: written as they are made, read through a memory map, so that no set is in memory."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from tropism.data.render import Rendered
from tropism.training.supervised import Row

BATCH = 1000
"""Rows in a record batch; every one but the last has so many, so that a row's number says where it is."""
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "response_mask": pa.list_(pa.bool_()),
        "text": pa.string(),
        "notes": pa.list_(pa.string()),
        "route": pa.int8(),
    }
)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows to a file, a batch at a time."""
    left = iter(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        while part := list(islice(left, BATCH)):
            writer.write_batch(_batch(part))


def _batch(rows: Sequence[Row]) -> Any:
    columns = (
        [row.rendered.input_ids for row in rows],
        [row.rendered.response_mask for row in rows],
        [row.rendered.text for row in rows],
        [list(row.rendered.notes) for row in rows],
        [row.columns["route"] for row in rows],
    )
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


class RowTable(Sequence[Row]):
    """The rows of such a file; each is made when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: Any = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches: dict[int, Any] = {}
        count = self._reader.num_record_batches
        self._rows = 0 if count == 0 else (count - 1) * BATCH + self._held(count - 1).num_rows

    def __reduce__(self) -> tuple[type["RowTable"], tuple[Path]]:
        return RowTable, (self._path,)

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._rows))]
        place = index + self._rows if index < 0 else index
        if not 0 <= place < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        batch, number = self._held(place // BATCH), place % BATCH
        ids, mask, text, notes, route = (column[number] for column in batch.columns)
        rendered = Rendered(
            ids.values.to_numpy().tolist(),
            mask.values.to_numpy(zero_copy_only=False).tolist(),
            text.as_py(),
            tuple(notes.as_py()),
        )
        return Row(rendered, {"route": route.as_py()})

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(self._rows))

    def _held(self, number: int) -> Any:
        """A record batch: its places in the map, and no copy of what lies there."""
        if number not in self._batches:
            self._batches[number] = self._reader.get_batch(number)
        return self._batches[number]
