"""A results folder in an object store: what one machine has done, another finds there, and no run is done twice."""

import os
import time
from collections import Counter

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.local import LocalFileSystem

import shared_worker
import tiny_experiment
import tropism as tp
from command import tropism
from forked import Forked
from tropism.errors import MissingExtra, RunFolderError, UsageError
from tropism.experiments.after import status
from tropism.experiments.executors.on_ray import Ray
from tropism.experiments.mirror import local_of, store_of
from tropism.experiments.progress import Progress
from tropism.experiments.store_claims import claims_of

RUNS = {"base", *(f"{condition}/seed-{seed}" for condition in ("plain", "baseline", "guarded") for seed in (0, 1))}


class Heard(Progress):
    def __init__(self):
        self.started, self.lines = [], []

    def start(self, name, index, of):
        self.started.append(name)

    def say(self, line):
        self.lines.append(line)


class Plain(LocalFileSystem):
    """A store that overwrites whatever it is asked to create."""

    protocol = "plain"

    def _open(self, path, mode="rb", **kwargs):
        return super()._open(path, mode.replace("x", "w"), **kwargs)


@pytest.fixture(autouse=True, scope="module")
def _plain():
    fsspec.register_implementation("plain", Plain, clobber=True)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Become another machine: one with a cache of its own."""
    return lambda name: monkeypatch.setenv("TROPISM_CACHE", str(tmp_path / name))


@pytest.mark.slow
def test_another_machine_finds_what_is_done_and_does_a_lost_run_again(tmp_path, machine):
    file, url = tiny_experiment.write(tmp_path), f"memory://bucket{tmp_path}"
    machine("one")
    first = tp.run(file, url)
    store = store_of(local_of(url))
    assert {name for name, state, _ in status.of(local_of(url)) if state == "done"} == RUNS
    assert {"experiment.yaml", "results.csv", "report.html", "directions/caps.safetensors"} <= set(store.names())
    assert not any(".store" in name or "partial" in name or "tried" in name for name in store.names())

    machine("two")
    heard = Heard()
    pd.testing.assert_frame_equal(tp.run(file, url, progress=heard), first, check_exact=True)
    assert heard.started == []

    store.fs.rm_file(store.at("plain/seed-1/DONE.json"))
    machine("three")
    heard = Heard()
    pd.testing.assert_frame_equal(tp.run(file, url, progress=heard), first, check_exact=True)
    assert heard.started == ["plain/seed-1"]
    assert store.exists("plain/seed-1/DONE.json")


@pytest.mark.slow
def test_two_machines_share_the_runs_out_and_the_commands_read_the_url(tmp_path, machine):
    file, url = tiny_experiment.write(tmp_path), f"file://{tmp_path}/bucket/tiny"
    alone = tp.run(file, tmp_path / "alone")
    (tmp_path / "go").touch()
    logs = [tmp_path / "log-0", tmp_path / "log-1"]
    started = [
        Forked(
            shared_worker.work,
            file,
            url,
            log,
            tmp_path / "go",
            False,
            environment={**os.environ, "TROPISM_CACHE": str(tmp_path / f"cache-{index}")},
        )
        for index, log in enumerate(logs)
    ]
    assert [process.wait(timeout=500) for process in started] == [0, 0]
    done = Counter(line for log in logs for line in log.read_text().splitlines() if line.startswith("done "))
    assert done == dict.fromkeys((f"done {run}" for run in RUNS), 1)
    found = pd.read_csv(tmp_path / "bucket" / "tiny" / "results.csv")
    alone.to_csv(tmp_path / "alone.csv", index=False)
    pd.testing.assert_frame_equal(found, pd.read_csv(tmp_path / "alone.csv"), check_exact=True)
    machine("cache-2")
    said = tropism("status", url)
    assert "7 of 7 runs are done" in said.stdout
    (tmp_path / "bucket" / "tiny" / "report.html").unlink()
    assert tropism("report", url).returncode == 0
    assert (tmp_path / "bucket" / "tiny" / "report.html").is_file()


def test_of_two_machines_one_has_the_claim_and_a_silent_ones_is_taken_over(tmp_path, machine, monkeypatch):
    url = f"memory://bucket{tmp_path}"
    machine("one")
    first = claims_of(local_of(url))
    held = first.take("runs/a/seed-0")
    machine("two")
    second = claims_of(local_of(url))
    assert second.take("runs/a/seed-0") is None
    assert str(second.holder("runs/a/seed-0")).startswith(f"process {os.getpid()} on ")
    held.release()
    again = second.take("runs/a/seed-0")
    assert again is not None
    again._over.set()
    later = time.time() + 400
    monkeypatch.setattr("tropism.experiments.store_claims.time.time", lambda: later)
    assert first.take("runs/a/seed-0") is not None
    assert again._taken_over()


def test_a_store_that_cannot_claim_is_one_machines(tmp_path, machine):
    url = f"plain://{tmp_path}/bucket"
    machine("one")
    first = claims_of(local_of(url))
    assert not first.exclusive
    with first.take("runs/a/seed-0"):
        machine("two")
        second = claims_of(local_of(url))
        with pytest.raises(UsageError, match="is worked on by process .*cannot create a file only where there is none"):
            second.take("runs/b/seed-0")
    with second.take("runs/b/seed-0"):
        pass


def test_what_cannot_be_opened_is_one_sentence(tmp_path, machine):
    machine("one")
    with pytest.raises(UsageError, match="nosuch://bucket cannot be opened"):
        local_of("nosuch://bucket")
    with pytest.raises(RunFolderError, match="memory://nothing holds no experiment.yaml"):
        local_of("memory://nothing", reading=True)
    with pytest.raises(UsageError, match="need a folder that every node sees under one path"):
        tp.run(tiny_experiment.write(tmp_path), f"memory://b{tmp_path}", executor=Ray())


@pytest.mark.skipif("s3" not in fsspec.available_protocols(), reason="fsspec knows no s3")
def test_a_protocol_without_its_package_names_it(tmp_path, machine):
    machine("one")
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match="s3fs"):
            local_of("s3://bucket/tiny")
