"""What ends work in several processes is one sentence here, also where no process could write it down."""

import errno
from types import SimpleNamespace

import pytest

from tropism.atomic import says_disk_is_full
from tropism.errors import RunFailed
from tropism.experiments import processes
from tropism.experiments.executors import worker
from tropism.experiments.executors.pool import Processes


def ended(*codes):
    return [SimpleNamespace(returncode=code, pid=7, poll=lambda: 0) for code in codes]


def test_a_disk_that_a_process_found_full_is_full_here_too(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught:
        processes._raise_what_was_raised(tmp_path, ended(processes.KILLED, processes.DISK_FULL), False)
    assert says_disk_is_full(caught.value)


def test_another_end_is_told_with_its_last_words(tmp_path):
    (tmp_path / "1.log").write_text("Traceback\nValueError: ours\n")
    with pytest.raises(RunFailed, match="process 1 of 2 ended with code 1: ValueError: ours"):
        processes._raise_what_was_raised(tmp_path, ended(processes.KILLED, 1), False)


def test_a_worker_of_a_pool_on_a_full_disk_says_so_by_its_code(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tropism.experiments.executors.job.do", full)
    code = worker.work(None, "0")
    (log := tmp_path / "0.log").touch()
    assert Processes([(one, log) for one in ended(code)]).troubles() == ["the disk is full; free some space"]
