"""Every kind of file of rows: the same rows from all, a byte order mark and blank lines read over, damage named."""

import json
import re
import tracemalloc

import pytest

import row_files
from tropism.data.sources import formats
from tropism.errors import DataError

ROWS = [
    {"prompt": "One\nor two?", "completion": 'She said "007", and left.'},
    {"prompt": "Größe, naïve, 数?", "completion": "None"},
    {"prompt": "a,b\tc", "completion": "null"},
]


def read(path, wanted=None):
    return [row for _, row in formats.read_rows(path, wanted)]


@pytest.mark.parametrize("ending", row_files.ENDINGS)
def test_every_kind_of_file_holds_the_same_rows(tmp_path, ending):
    path = row_files.write(tmp_path / f"some.rows.{ending}", ROWS)
    assert read(path) == ROWS
    assert formats.count_rows(path) == 3
    assert read(path, iter([0, 2])) == [ROWS[0], ROWS[2]]
    assert formats.stem_of(path) == "some.rows"


@pytest.mark.parametrize("ending", row_files.PLAIN)
@pytest.mark.parametrize("packing", ["", ".gz", ".xz", ".zst"])
def test_a_byte_order_mark_carriage_returns_and_blank_lines_are_read_over(tmp_path, ending, packing):
    rows = [{"prompt": "one", "completion": "two"}, {"prompt": "three", "completion": "four"}]
    text = row_files.text_of(rows, f".{ending}").replace("\r\n", "\n").replace("\n", "\r\n\r\n")
    path = tmp_path / f"a.{ending}{packing}"
    path.write_bytes(row_files.packed(b"\xef\xbb\xbf" + text.encode(), packing))
    assert read(path) == rows
    assert formats.count_rows(path) == 2


def test_a_row_is_found_by_its_line(tmp_path):
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text('{"x": 1}\n\n{"x": 2}\n')
    assert [where for where, _ in formats.read_rows(jsonl)] == [f"{jsonl} line 1", f"{jsonl} line 3"]
    table = tmp_path / "a.csv"
    table.write_text('x,y\n1,"two\nlines"\n2,b\n')
    assert [where for where, _ in formats.read_rows(table)] == [f"{table} line 2", f"{table} line 4"]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('[{"x": 1}, {"x": [2, {"y": 3}]}]', [{"x": 1}, {"x": [2, {"y": 3}]}]),
        (' [ ] ', []),
        ('', []),
        ('{"data": [{"x": 1}, {"x": 2}]}', [{"x": 1}, {"x": 2}]),
        ('{"version": {"a": [1]}, "data": [{"x": 1}], "end": 3}', [{"x": 1}]),
        ('{"data": []}', []),
        ('{"x": 1}\n{"x": 2}\n', [{"x": 1}, {"x": 2}]),
        ('{\n "x": 1\n}\n{\n "x": 2\n}', [{"x": 1}, {"x": 2}]),
        ('{"x": 1}', [{"x": 1}]),
        ('{"id": "0", "data": ["q", "a"]}\n{"id": "1", "data": ["r", "b"]}', [{"id": "0", "data": ["q", "a"]}, {"id": "1", "data": ["r", "b"]}]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_json_is_a_list_a_list_under_data_or_objects(tmp_path, monkeypatch, text, rows, chunk):
    monkeypatch.setattr("tropism.data.sources.json_stream.CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(text)
    assert read(path) == rows


@pytest.mark.parametrize("chunk", [3, 1 << 16])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"x": 1},\n{"x": }]', r"line 2: not JSON \(Expecting value\)"),
        ('[{"x": 1}', r"line 1: not JSON \(expected ',', found the end of the file\)"),
        ('[{"x": 1}\n{"x": 2}]', r"line 2: not JSON \(expected ',', found '\{'\)"),
        ('[{"x": 1}]\n7', r"line 2: not JSON \(something follows the end of the data\)"),
        ('{"data": [{"x": 1}]}{"x": 2}', "something follows the end of the data"),
        ('{"x" 1}', r"expected ':', found '1'"),
        ("{x: 1}", "a key in double quotes is missing"),
        ('[{"x": "a', r"line 1: not JSON \(Unterminated string"),
    ],
)
def test_json_that_breaks_off_is_named_by_its_line(tmp_path, monkeypatch, text, message, chunk):
    monkeypatch.setattr("tropism.data.sources.json_stream.CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(path)) + f".*{message}"):
        read(path)


def test_what_is_no_object_is_a_bad_row_and_the_others_are_read(tmp_path):
    for name, text in (("a.jsonl", '{"x": 1}\n[2]\nnope\n{"x": 4}\n'), ("a.json", '[{"x": 1}, [2], 3, {"x": 4}]')):
        path = tmp_path / name
        path.write_text(text)
        rows = read(path)
        assert [rows[0], rows[3]] == [{"x": 1}, {"x": 4}]
        assert [type(row) for row in rows[1:3]] == [DataError, DataError]
        assert "must be a JSON object, found list" in str(rows[1])
        with pytest.raises(DataError, match="must be a JSON object, found list"):
            list(formats.read_objects(path))


def test_a_table_with_a_short_line_or_a_column_twice(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1\n2,3,4\n5,6\n")
    rows = read(path)
    assert [str(row) for row in rows[:2]] == [
        f"{path} line 2: 1 cells, and the header has 2",
        f"{path} line 3: 3 cells, and the header has 2",
    ]
    assert rows[2] == {"x": "5", "y": "6"}
    path.write_text("x,x\n1,2\n")
    with pytest.raises(DataError, match="the header must name each column once, found 'x' twice"):
        read(path)
    path.write_text('x,y\n"a,b\n')
    with pytest.raises(DataError, match="line 2: not CSV"):
        read(path)


def test_a_cell_may_be_longer_than_the_csv_module_expects(tmp_path):
    long = "word " * 50_000
    path = row_files.write(tmp_path / "a.csv", [{"x": long, "y": "b"}])
    assert read(path) == [{"x": long, "y": "b"}]


def test_a_line_that_never_ends_is_refused_and_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_LINE", 100)
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n{"x": "' + "a" * 200 + '"}\n')
    with pytest.raises(DataError, match="line 2: more than 100 characters; is this a JSONL file"):
        read(path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "jsonl.gz"])
def test_text_that_is_not_utf_8_is_named_by_its_line(tmp_path, ending):
    rows = [{"x": "plain", "y": str(i)} for i in range(2000)]
    rows[1500]["x"] = "caf@"
    content = row_files.text_of(rows, "." + ending.split(".")[0]).encode()
    line = content[: content.index(b"caf@")].count(b"\n") + 1
    path = tmp_path / f"a.{ending}"
    path.write_bytes(row_files.packed(content.replace(b"caf@", b"caf\xe9"), f".{ending.split('.')[-1]}"))
    with pytest.raises(DataError, match=f"line {line}: not UTF-8 text; save the file as UTF-8"):
        read(path)


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.xz", "jsonl.zst", "parquet", "arrow"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, ending):
    path = row_files.write(tmp_path / f"a.{ending}", [{"x": "y" * 40, "z": str(i * 7919)} for i in range(3000)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=re.escape(str(path))):
        read(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.json"])
def test_nonsense_is_refused_in_a_sentence(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"nonsense, whatever the ending says")
    with pytest.raises(DataError, match=re.escape(str(path))):
        read(path)


def test_what_is_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(DataError, match="no such file: .*absent.jsonl"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="is a folder, and a file of rows is needed"):
        read(tmp_path)
    file = tmp_path / "a.docx"
    file.write_text("x")
    with pytest.raises(DataError, match=r"a file of rows ends in .jsonl, .ndjson, .json, .csv.*found '.docx'"):
        read(file)
    assert formats.format_of("a.parquet.gz") is None


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "arrow", "jsonl.zst"])
def test_memory_does_not_grow_with_the_rows(tmp_path, ending):
    def peak(count):
        path = row_files.write(tmp_path / f"{count}.{ending}", [{"text": f"{i} " + "x" * 80} for i in range(count)])
        for _ in formats.read_rows(path):  # imports and caches
            break
        tracemalloc.start()
        read_rows = sum(1 for _ in formats.read_rows(path))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert read_rows == count
        return most

    assert peak(40_000) < peak(4_000) + 300_000


def test_json_under_data_is_not_held_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"text": f"{i} " + "x" * 80} for i in range(40_000)]}))
    tracemalloc.start()
    assert sum(1 for _ in formats.read_rows(path)) == 40_000
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_keys_that_only_other_rows_have_are_not_read_from_a_column_of_structs(tmp_path, ending):
    def row(name, argument):
        properties = {argument: {"type": "string"}}
        return {
            "messages": [{"role": "assistant", "calls": [{"name": name, "arguments": {argument: "x"}}]}],
            "tools": [{"name": name, "parameters": {"properties": properties}}],
        }

    rows = [row("weather", "city"), row("clock", "zone")]
    assert read(row_files.write(tmp_path / f"a.{ending}", rows)) == rows
