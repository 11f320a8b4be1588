"""Stamps: every file's hash, checked; what is wrong is said."""

import json
import os

import pytest

from tropism.experiments import kept
from tropism.experiments.kept import check_stamp, file_hash, write_stamp


@pytest.fixture
def stamp(tmp_path):
    for name in ("a.bin", "deep/b.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(range(256)))
    write_stamp(tmp_path / "STAMP.json", [tmp_path / "a.bin", tmp_path / "deep/b.bin"], train="x")
    return tmp_path / "STAMP.json"


def test_what_was_not_touched_is_whole(stamp):
    found = check_stamp(stamp, "train")
    assert found
    assert found.said["train"] == "x"
    assert set(found.said["files"]) == {"a.bin", "deep/b.bin"}


@pytest.mark.parametrize("place", [0, 100, 255])
def test_one_flipped_bit_is_found(stamp, place):
    file = stamp.parent / "deep/b.bin"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert check_stamp(stamp, "train").flaw == "deep/b.bin was changed after it was written"


def test_every_other_flaw_is_named(stamp):
    held = json.loads(stamp.read_text())
    (stamp.parent / "a.bin").unlink()
    assert check_stamp(stamp).flaw == "a.bin is missing"
    assert check_stamp(stamp, "evaluate").flaw == "STAMP.json says nothing of 'evaluate'"
    stamp.write_text(json.dumps({"train": held["train"]}))
    assert check_stamp(stamp).flaw == "STAMP.json has no hashes of files, since an older version wrote it"
    stamp.write_text("{")
    assert check_stamp(stamp).flaw == "STAMP.json was changed"
    stamp.unlink()
    assert check_stamp(stamp).flaw == "STAMP.json is not there"


def test_a_file_is_hashed_once_and_again_when_it_is_written_to(tmp_path, monkeypatch):
    read, hashed = [], kept._read_and_hash
    monkeypatch.setattr(kept, "_read_and_hash", lambda path: read.append(path) or hashed(path))
    monkeypatch.setattr(kept, "SETTLED_NS", 0)
    file = tmp_path / "a"
    file.write_text("one")
    first = file_hash(file)
    assert file_hash(file) == first
    assert len(read) == 1
    file.write_text("two")
    os.utime(file, (0, 0))
    assert file_hash(file) != first


def test_a_file_that_was_just_written_is_never_taken_from_memory(tmp_path):
    file = tmp_path / "a"
    for text in "abcdefgh" * 50:  # several writes within one tick of the clock
        file.write_text(text)
        assert file_hash(file) == {letter: kept._read_and_hash(file) for letter in text}[text]
