"""The process that workers are forked from, without an experiment."""

import json
import subprocess
import sys

import pytest

from tropism.experiments.executors.source import LOST, Source, Worker, can_fork

ENDS = "import sys; sys.stdin.readline(); print('[11, 12]', flush=True); sys.stdin.read()"


def source(code):
    pipe = subprocess.PIPE
    return Source(subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True))


@pytest.mark.skipif(not can_fork(), reason="workers are forked on Linux alone")
def test_a_worker_has_the_code_that_its_source_wrote_and_is_lost_with_it(tmp_path):
    one, two = source(ENDS).workers(tmp_path / "job.pickle", [tmp_path / "0.log", tmp_path / "1.log"], 1)
    assert (one.pid, two.pid) == (11, 12)
    one._source.wait()
    (tmp_path / "ended").write_text(json.dumps([11, 2]) + "\n" + "[12,")  # a line that is not whole is none
    assert one.poll() == 2
    assert two.poll() == LOST
    waits = Worker(13, tmp_path / "ended", subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
    assert waits.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        waits.wait(0.1)
    waits._source.communicate(b"\n")


def test_a_source_that_died_gives_no_workers_and_says_so(tmp_path, caplog):
    dead = source("raise SystemExit(1)")
    assert dead.workers(tmp_path / "job.pickle", [tmp_path / "0.log"], 1) == []
    assert "each worker imports for itself" in caplog.text
