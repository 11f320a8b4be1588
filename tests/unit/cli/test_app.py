"""What ends the command: one sentence and an exit code, also for what no command foresaw."""

import importlib
import os
import subprocess
import sys

import pytest

app = importlib.import_module("tropism.cli.app")  # `tropism.cli.app` is the command itself


@pytest.mark.parametrize("words", ["a file", "PytorchStreamWriter failed: No space left on device"])
def test_a_full_disk_is_one_sentence(monkeypatch, capsys, words):
    def write(*_):
        if words == "a file":
            with open("/dev/full", "w") as full:
                full.write("x")
        raise RuntimeError(words)

    if sys.platform == "win32":
        pytest.skip("there is no /dev/full")
    monkeypatch.setattr(app, "app", write)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: the disk is full; free some space and run the same command again")


def test_another_error_is_not_taken_for_one(monkeypatch):
    def fail():
        raise RuntimeError("ours")

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(RuntimeError, match="ours"):
        app.main()


def test_a_reader_that_leaves_is_no_error_of_ours():
    """`tropism schema | head -1`: the status is a shell's for SIGPIPE, and nothing is printed about it."""
    command = [sys.executable, "-m", "tropism", "schema"]  # more than a pipe holds
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "{\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "scorers", "--json"], ["schema"]])
def test_a_reader_that_has_left_before_the_first_line_is_none_either(arguments):
    """Rich (help), `print` (flushed at exit) and Typer each meet the broken pipe in a place of their own."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tropism", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
