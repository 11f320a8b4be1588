"""Files of rows: JSONL, JSON, CSV, TSV, Parquet and Arrow, the first four also compressed; read row by row.

Text formats are read by the standard library, and not by `datasets`: an error must name the line, a column may hold
values of several types, and an answer `None` or `007` must stay the text that it is. Parquet and Arrow are read by
pyarrow in batches, so that a file is neither copied into a cache nor held in memory.
"""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tropism.data.sources.json_stream import JsonStream
from tropism.errors import DataError
from tropism.unique_keys import KeyTwice, from_json

Row = Mapping[str, Any]
Read = tuple[str, Row | DataError]
"""Where a row is (`"FILE line 7"`), and the row, or the reason why it is none."""

MAX_LINE = 10_000_000
"""Characters in one line; a longer one is an accident and not a chat."""

BATCH = 1000

COMPRESSED = (".gz", ".xz", ".zst")


@dataclass(frozen=True)
class Format:
    """How the rows of one kind of file are read.

    `items` yields the rows as they lie in the file, `decode` makes a row of one: rows that are not wanted are not
    decoded. `count` counts rows without decoding them.
    """

    endings: tuple[str, ...]
    items: Callable[[Path], Iterator[tuple[str, Any]]]
    decode: Callable[[str, Any], Row | DataError]
    count: Callable[[Path], int]


def format_of(path: str | Path) -> Format | None:
    """Return the format that a file's name ends in, compressed or not; None where it is none of ours."""
    plain = _plain(Path(path))
    for one in FORMATS:
        if plain.endswith(one.endings):
            compressed = plain != Path(path).name.lower()
            return None if compressed and one in (PARQUET, ARROW) else one
    return None


def stem_of(path: Path) -> str:
    """Return a file's name without the endings that say its format: `train` of `train.jsonl.gz`."""
    name = path.name
    for ending in (*COMPRESSED, *(ending for one in FORMATS for ending in one.endings)):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    return name


def read_rows(path: str | Path, wanted: Iterator[int] | None = None) -> Iterator[Read]:
    """Yield the rows of a file; with `wanted`, increasing indices, those alone.

    Raises `DataError` where the file is not there, has another ending or cannot be read to its end.
    """
    source, one = _known(path)
    with _readable(source):
        items = one.items(source)
        for where, item in items if wanted is None else picked(items, wanted):
            yield where, one.decode(where, item)


def count_rows(path: str | Path) -> int:
    """Return how many rows a file has; raises `DataError` where it cannot be read."""
    source, one = _known(path)
    with _readable(source):
        return one.count(source)


def picked(items: Iterator[tuple[str, Any]], wanted: Iterator[int]) -> Iterator[tuple[str, Any]]:
    """Yield the items at increasing indices, and stop after the last one."""
    following = next(wanted, None)
    for index, item in enumerate(items):
        if following is None:
            return
        if index == following:
            yield item
            following = next(wanted, None)


def read_objects(path: str | Path) -> Iterator[tuple[str, Row]]:
    """Yield each row of a file with where it is (`"FILE line N"`); raises `DataError` for one that is no object."""
    for where, row in read_rows(path):
        if isinstance(row, DataError):
            raise row
        yield where, row


def existing(path: str | Path) -> Path:
    """Return a path to a file that is there; raises `DataError` otherwise."""
    source = Path(path)
    if source.is_dir():
        raise DataError(f"{source} is a folder, and a file of rows is needed")
    if not source.is_file():
        raise DataError(f"no such file: {source}")
    return source


def endings() -> str:
    """Return the endings of files of rows, for a message."""
    return ", ".join(ending for one in FORMATS for ending in one.endings)


def _plain(path: Path) -> str:
    """A file's name in lower case, without the ending of its compression."""
    name = path.name.lower()
    return next((name.removesuffix(ending) for ending in COMPRESSED if name.endswith(ending)), name)


def _known(path: str | Path) -> tuple[Path, Format]:
    source = existing(path)
    one = format_of(source)
    if one is None:
        raise DataError(f"{source}: a file of rows ends in {endings()}, found {source.suffix or source.name!r}")
    return source, one


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises while it is read into a sentence."""
    try:
        yield
    except UnicodeDecodeError:
        raise DataError(f"{path} line {_first_bad_line(path)}: not UTF-8 text; save the file as UTF-8") from None
    except (EOFError, lzma.LZMAError, OSError) as error:
        raise DataError(f"{path}: could not be read to its end ({error}); is the file complete?") from None


def _first_bad_line(path: Path) -> int:
    """The line at which a file stops being UTF-8: the decoder itself reads ahead and cannot say."""
    with _open(path, "surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if any("\udc80" <= character <= "\udcff" for character in line):
                return number
    return 1


def _open(path: Path, errors: str = "strict") -> IO[str]:
    """A text file, compressed or not, with its byte order mark left out and its line ends as they are."""
    ending = path.suffix.lower()
    if ending == ".zst":
        import pyarrow

        # datasets needs pyarrow, which has the codec: no further library for one ending.
        raw: Any = pyarrow.input_stream(str(path), compression="zstd")
        return io.TextIOWrapper(io.BufferedReader(raw), encoding="utf-8-sig", errors=errors, newline="\n")
    opened: Any = {".gz": gzip.open, ".xz": lzma.open}.get(ending, open)
    text: IO[str] = opened(path, "rt", encoding="utf-8-sig", errors=errors, newline="\n")
    return text


def _jsonl_items(path: Path) -> Iterator[tuple[str, str]]:
    with _open(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 2):
            number += 1
            if len(line) > MAX_LINE:
                raise DataError(f"{path} line {number}: more than {MAX_LINE} characters; is this a JSONL file?")
            if not line.isspace():
                yield f"{path} line {number}", line


def _jsonl_row(where: str, line: str) -> Row | DataError:
    try:
        row = from_json(line)
    except KeyTwice as error:
        return DataError(f"{where}: {error}")
    except (json.JSONDecodeError, RecursionError) as error:
        return DataError(f"{where}: not JSON ({error}); each line must be one JSON object")
    return _object(where, row, "must be a JSON object")


def _object(where: str, row: Any, rule: str = "a row must be a JSON object") -> Row | DataError:
    return row if isinstance(row, dict) else DataError(f"{where}: {rule}, found {type(row).__name__}")


def _count_items(items: Callable[[Path], Iterator[tuple[str, Any]]]) -> Callable[[Path], int]:
    return lambda path: sum(1 for _ in items(path))


def _json_items(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON file: of its list, of the list under `data`, or its objects one after the other."""
    with _open(path) as file:
        yield from JsonStream(path, file, MAX_LINE).rows()


def _csv_items(path: Path) -> Iterator[tuple[str, Row | DataError]]:
    # A cell may be as long as a line of JSONL. The limit is the module's, and is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
    separator = "\t" if _plain(path).endswith(".tsv") else ","
    with _open(path) as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            _check_header(path, header)
            before = reader.line_num
            for cells in reader:
                where, before = f"{path} line {before + 1}", reader.line_num
                if not cells or (len(cells) == 1 < len(header) and not cells[0].strip()):
                    continue
                if len(cells) != len(header):
                    yield where, DataError(f"{where}: {len(cells)} cells, and the header has {len(header)}")
                    continue
                yield where, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num}: not CSV ({error})") from None


def _check_header(path: Path, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header must name each column once, found {twice[0]!r} twice")


def _same(where: str, item: Any) -> Row | DataError:
    """A row that is read as it is."""
    return item if isinstance(item, DataError) else _object(where, item)


def _parquet_items(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _of_batches(path, file.iter_batches(batch_size=BATCH))
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from None


def _parquet_count(path: Path) -> int:
    import pyarrow
    from pyarrow import parquet

    try:
        return int(parquet.read_metadata(path).num_rows)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from None


def _arrow_items(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as mapped:
        try:
            # A stream, as datasets writes it, or a file, as Feather does.
            batches: Any = pyarrow.ipc.open_stream(mapped)
        except pyarrow.ArrowInvalid:
            try:
                opened = pyarrow.ipc.open_file(mapped)
            except pyarrow.ArrowInvalid as error:
                raise DataError(f"{path}: not an Arrow file ({error})") from None
            batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
        yield from _of_batches(path, batches)


def _of_batches(path: Path, batches: Any) -> Iterator[tuple[str, Row]]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            for row in batch.slice(start, BATCH).to_pylist():
                number += 1
                yield f"{path} row {number}", {name: _own_keys(value) for name, value in row.items()}


def _own_keys(value: Any) -> Any:
    """A value of a row with the keys that were written.

    A column of structs has the keys of all its rows in each: a tool's argument that another row's tool takes would be there,
    as null, and be learned.
    """
    if isinstance(value, dict):
        return {key: _own_keys(held) for key, held in value.items() if held is not None}
    return [_own_keys(held) for held in value] if isinstance(value, list) else value


JSONL = Format((".jsonl", ".ndjson"), _jsonl_items, _jsonl_row, _count_items(_jsonl_items))
JSON = Format((".json",), _json_items, _same, _count_items(_json_items))
TABLE = Format((".csv", ".tsv"), _csv_items, _same, _count_items(_csv_items))
PARQUET = Format((".parquet",), _parquet_items, _same, _parquet_count)
ARROW = Format((".arrow", ".feather"), _arrow_items, _same, _count_items(_arrow_items))
FORMATS = (JSONL, JSON, TABLE, PARQUET, ARROW)
