"""Several processes on one results folder: nothing is done twice, nothing is lost, also where one is killed."""

import os
import random
import signal
import time
from collections import Counter

import pandas as pd
import pytest

import shared_worker
import tiny_experiment
import tropism as tp
from forked import Forked
from tropism.experiments.after import status

RUNS = {"base", *(f"{condition}/seed-{seed}" for condition in ("plain", "baseline", "guarded") for seed in (0, 1))}
PATIENCE_S = 500
pytestmark = pytest.mark.slow


class Workers:
    """Processes that work on the experiment in `path`, started together."""

    def __init__(self, path, count, hanging=()):
        self.file, self.out, self.path = tiny_experiment.write(path), path / "out", path
        self.logs = [path / f"log-{index}" for index in range(count)]
        self.processes = []
        for index, log in enumerate(self.logs):
            given = (self.file, self.out, log, self._go(index), index in hanging)
            self.processes.append(Forked(shared_worker.work, *given))
        self.until(lambda: all("ready" in self.lines(index) for index in range(count)))

    def lines(self, index):
        return self.logs[index].read_text().splitlines() if self.logs[index].exists() else []

    def until(self, condition):
        ends = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < ends, [self.lines(index) for index in range(len(self.logs))]
            time.sleep(0.02)

    def start(self, *indices):
        for index in indices or range(len(self.logs)):
            self._go(index).touch()

    def _go(self, index):
        return self.path / f"go-{index}"

    def end(self):
        return [process.wait(timeout=PATIENCE_S) for process in self.processes]

    def done(self):
        """How often each run was done, by whomever."""
        return Counter(line.removeprefix("done ") for i in range(len(self.logs)) for line in self.lines(i)
                       if line.startswith("done "))  # fmt: skip


@pytest.fixture
def workers():
    made = []
    yield lambda *args, **kwargs: made.append(Workers(*args, **kwargs)) or made[-1]
    for process in (process for each in made for process in each.processes):
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone")
    return tp.run(tiny_experiment.write(path), path / "out")


def check(result, out, alone):
    pd.testing.assert_frame_equal(pd.read_csv(out / "results.csv"), pd.read_csv(result), check_exact=True)
    assert {state for _, state, _ in status.of(out)} == {"done"}
    assert (out / "report.html").is_file()
    left = list(out.rglob("*.partial"))
    assert left == []


@pytest.mark.parametrize("count", [2, 4])
def test_no_run_is_done_twice(tmp_path, workers, alone, count):
    alone.to_csv(tmp_path / "alone.csv", index=False)
    together = workers(tmp_path, count)
    together.start()
    assert together.end() == [0] * count
    assert together.done() == dict.fromkeys(RUNS, 1)
    check(tmp_path / "alone.csv", together.out, alone)
    # the report is drawn once as well
    drawn = [line for index in range(count) for line in together.lines(index) if line == "say drawing the report"]
    assert len(drawn) == 1


def test_a_killed_process_loses_nothing_and_the_others_do_its_run(tmp_path, workers, alone):
    alone.to_csv(tmp_path / "alone.csv", index=False)
    together = workers(tmp_path, 3, hanging=[0])
    together.start(0)
    together.until(lambda: "hang" in together.lines(0))
    together.start(1, 2)
    victim = next(line.removeprefix("start ") for line in reversed(together.lines(0)) if line.startswith("start "))
    # all the others' runs are done, and they wait for the one that is held
    together.until(lambda: set(together.done()) >= RUNS - {victim})
    states = {name: state for name, state, _ in status.of(together.out)}
    assert states[victim].startswith(f"running: process {together.processes[0].pid} on ")
    os.kill(together.processes[0].pid, signal.SIGKILL)
    assert together.end() == [-signal.SIGKILL, 0, 0]
    assert together.done() == dict.fromkeys(RUNS, 1)
    assert any(line.startswith("say waiting for ") for line in [*together.lines(1), *together.lines(2)])
    check(tmp_path / "alone.csv", together.out, alone)


def test_eight_processes_of_which_five_are_killed_at_random(tmp_path, workers, alone):
    alone.to_csv(tmp_path / "alone.csv", index=False)
    together, chance = workers(tmp_path, 8), random.Random(os.environ.get("TROPISM_KILLS", "17"))
    together.start()
    together.until(lambda: any(line.startswith("start ") for index in range(8) for line in together.lines(index)))
    killed = chance.sample(range(8), 5)
    for index in killed:
        time.sleep(chance.uniform(0, 1.5))
        together.processes[index].kill()
    ended = together.end()
    assert [code for index, code in enumerate(ended) if index not in killed] == [0] * 3
    # One that is killed right after it has stamped a run no longer says so; no run is stamped twice.
    assert set(together.done().values()) == {1}
    check(tmp_path / "alone.csv", together.out, alone)
