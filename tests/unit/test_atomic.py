"""Files that are written whole or not at all."""

import threading

import pytest

from tropism.atomic import replacing, write_text


def test_an_exception_leaves_the_target_as_it_was_and_nothing_beside_it(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "before")
    with pytest.raises(ZeroDivisionError), replacing(target) as path:
        path.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_text_keeps_its_line_ends(tmp_path):
    write_text(tmp_path / "new" / "a.csv", "a\r\nb\n")
    assert (tmp_path / "new" / "a.csv").read_bytes() == b"a\r\nb\n"


def test_writers_of_one_file_never_mix_and_never_meet(tmp_path):
    target, wrong = tmp_path / "results.csv", []

    def write(letter):
        for _ in range(200):
            write_text(target, letter * 5000)
            wrong.extend({*target.read_text()} if len({*target.read_text()}) > 1 else [])

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert list(tmp_path.iterdir()) == [target]
