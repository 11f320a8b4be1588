"""Writes the same rows as every kind of file of rows."""

import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow
from pyarrow import feather, parquet

PLAIN = ("jsonl", "ndjson", "json", "csv", "tsv")
ENDINGS = (
    *PLAIN,
    *(f"{ending}.{packed}" for ending in ("jsonl", "json", "csv", "tsv") for packed in ("gz", "xz", "zst")),
    "parquet",
    "arrow",
    "feather",
)
"""Every ending that a file of rows may have."""


def write(path, rows):
    """Write rows to a file of the kind that its name ends in; returns the path."""
    endings = Path(path).suffixes
    kind = next(ending for ending in reversed(endings) if ending not in (".gz", ".xz", ".zst"))
    if kind == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == ".feather":
        feather.write_feather(pyarrow.Table.from_pylist(rows), str(path))
    elif kind == ".arrow":
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    else:
        Path(path).write_bytes(packed(text_of(rows, kind).encode(), endings[-1]))
    return path


def text_of(rows, kind):
    """The rows as the text of a kind of file."""
    if kind in (".jsonl", ".ndjson"):
        return "".join(json.dumps(row) + "\n" for row in rows)
    if kind == ".json":
        return json.dumps(rows, indent=1)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def packed(content, ending):
    """Bytes compressed as an ending says."""
    if ending == ".gz":
        return gzip.compress(content)
    if ending == ".xz":
        return lzma.compress(content)
    if ending == ".zst":
        return pyarrow.compress(content, codec="zstd", asbytes=True)
    return content
