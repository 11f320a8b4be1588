"""Claims: one owner at a time, taken over from the dead, kept from the living."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from tropism.errors import ClaimLost
from tropism.experiments import claims as claims_module
from tropism.experiments.claims import Claims, this_process

HOLD = (
    "import sys, time; from pathlib import Path; from tropism.experiments.claims import Claims; "
    "Claims(Path(sys.argv[1])).take('runs/a'); print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds the claim `runs/a`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_one_of_many_gets_the_claim(tmp_path):
    taken, start = [], threading.Barrier(8)

    def take():
        start.wait()
        taken.append(Claims(tmp_path).take("runs/caft/seed-0"))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [claim for claim in taken if claim]
    assert len(winners) == 1
    winners[0].release()


def test_a_released_claim_is_free_and_an_unreleased_one_is_not(tmp_path):
    claims = Claims(tmp_path)
    with claims.take("runs/a"):
        assert claims.take("runs/a") is None
        assert claims.holder("runs/a").pid == os.getpid()
        with claims.take("runs/b"):
            pass
    assert claims.holder("runs/a") is None
    with claims.take("runs/a") as again:
        again.check()


def test_an_exception_releases(tmp_path):
    with pytest.raises(ZeroDivisionError), Claims(tmp_path).take("runs/a"):
        raise ZeroDivisionError
    with Claims(tmp_path).take("runs/a"):
        pass


def test_a_living_process_keeps_its_claim_and_a_killed_one_loses_it_at_once(tmp_path, holder):
    claims = Claims(tmp_path)
    assert claims.holder("runs/a").pid == holder.pid
    assert claims.take("runs/a") is None
    holder.kill()  # nobody has waited for it: it is a zombie, and its id is still taken
    while claims.holder("runs/a") is not None:
        time.sleep(0.01)
    with claims.take("runs/a"):
        assert claims.holder("runs/a").pid == os.getpid()


def test_another_process_with_the_id_of_a_dead_one_is_not_its_heir(tmp_path):
    claim = Claims(tmp_path).take("runs/a")
    rewrite(tmp_path / ".claims/runs/a/0.json", started=this_process().started - 1000)
    with Claims(tmp_path).take("runs/a"):
        pass
    claim.release()


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"processes": "pid:[1]"}])
def test_of_another_machine_only_the_heartbeat_tells(tmp_path, changes):
    claims, path = Claims(tmp_path), tmp_path / ".claims/runs/a/0.json"
    claim = claims.take("runs/a")
    rewrite(path, pid=2**22 + 1, **changes)
    assert claims.take("runs/a") is None
    silent = time.time() - claims_module.SILENT_S - 1
    os.utime(path, (silent, silent))
    with claims.take("runs/a"), pytest.raises(ClaimLost, match="another process has taken a over"):
        claim.check()
    claim.release()


def test_the_heartbeat_of_a_process_at_work_is_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "BEAT_S", 0.01)
    with Claims(tmp_path).take("runs/a"):
        path = tmp_path / ".claims/runs/a/0.json"
        os.utime(path, (0, 0))
        ends = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < ends:
            time.sleep(0.01)
        assert time.time() - path.stat().st_mtime < 60


def test_a_claim_whose_owner_is_still_writing_it_is_held(tmp_path):
    path = tmp_path / ".claims/runs/a/0.json"
    path.parent.mkdir(parents=True)
    path.write_text("")
    assert Claims(tmp_path).take("runs/a") is None


def test_who_waits_says_for_whom_and_goes_on_when_it_has_died(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(claims_module, "POLL_S", 0.01)
    said = []

    def say(line):
        said.append(line)
        holder.kill()

    with Claims(tmp_path).wait("runs/a", say, "the adapter 'a'"):
        assert said == [
            f"waiting for the adapter 'a', which process {holder.pid} on {this_process().host} is at work on"
        ]
