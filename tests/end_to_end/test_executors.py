"""Runs that are shared out among workers give what one process gives, also where workers are killed while they train."""

import os
import signal
import threading
import time
from collections import Counter

import pandas as pd
import pytest

import tiny_experiment
import tropism as tp
from tropism.errors import UsageError
from tropism.experiments.executors.choose import executor
from tropism.experiments.executors.on_ray import Ray
from tropism.experiments.executors.pool import Pool
from tropism.experiments.executors.slurm import Slurm
from tropism.experiments.executors.source import can_fork
from tropism.experiments.executors.spread import Executor
from tropism.experiments.progress import Progress

RUNS = {"base", *(f"{condition}/seed-{seed}" for condition in ("plain", "baseline", "guarded") for seed in (0, 1))}
pytestmark = pytest.mark.slow


class Heard(Progress):
    def __init__(self):
        self.done, self.lines = Counter(), []

    def say(self, line):
        self.lines.append(line)

    def finish(self, name, seconds, outcome):
        assert outcome == "done", outcome
        self.done[name] += 1


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone")
    return tp.run(tiny_experiment.write(path), path / "out")


def check(tmp_path, alone, executor):
    heard = Heard()
    found = tp.run(tiny_experiment.write(tmp_path), tmp_path / "out", progress=heard, executor=executor)
    pd.testing.assert_frame_equal(found, alone, check_exact=True)
    assert heard.done == dict.fromkeys(RUNS, 1)
    assert (tmp_path / "out" / "report.html").is_file()
    return heard


class Killing(Executor):
    """A pool whose first two workers are killed as soon as a run of theirs is begun."""

    def __init__(self, pool):
        self.pool = pool

    def start(self, job):
        workers = self.pool.start(job)

        def kill():
            for process, _ in workers.started[:2]:
                while not any(f'"pid": {process.pid}' in c.read_text() for c in claims(job)):
                    time.sleep(0.05)
                os.kill(process.pid, signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        return workers


def claims(job):
    return list((job.prepared.folder.path / ".claims" / "runs").rglob("*.json"))


@pytest.mark.parametrize("forked", [True, False])
def test_a_pool_with_two_of_three_workers_killed_loses_nothing_and_does_nothing_twice(tmp_path, alone, forked):
    if forked and not can_fork():
        pytest.skip("workers are forked on Linux alone")
    pool = executor("pool", 3) if forked else Pool(3)
    assert (pool.source is not None) == forked
    heard = check(tmp_path, alone, Killing(pool))
    assert sum("ended with code -9" in line for line in heard.lines) == 2


def test_a_pool_whose_workers_all_die_says_so_and_the_next_command_goes_on(tmp_path, alone):
    pool = executor("pool", 1)

    class Dying(Executor):
        def start(self, job):
            workers = pool.start(job)
            os.kill(workers.started[0][0].pid, signal.SIGKILL)
            return workers

    with pytest.raises(
        UsageError, match="left 7 of 7 runs unfinished .base is the first.: worker .* ended with code -9"
    ):
        tp.run(tiny_experiment.write(tmp_path), tmp_path / "out", executor=Dying())
    again = tp.run(tiny_experiment.write(tmp_path), tmp_path / "out", executor=pool)
    pd.testing.assert_frame_equal(again, alone, check_exact=True)


def test_slurm_through_submitits_local_executor(tmp_path, alone):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'tropism[slurm]'")
    check(tmp_path, alone, Slurm(2, {"timeout_min": 10}, cluster="local"))


def test_ray_on_two_nodes_of_which_one_is_lost(tmp_path, alone):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tropism[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = cluster.add_node(num_cpus=1)

    class Lossy(Executor):
        def start(self, job):
            workers = Ray(cluster.address).start(job)

            def lose():
                while len(claims(job)) < 3:
                    time.sleep(0.05)
                cluster.remove_node(lost, allow_graceful=False)

            threading.Thread(target=lose, daemon=True).start()
            return workers

    try:
        check(tmp_path, alone, Lossy())
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_ray_address_that_does_not_answer(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tropism[ray]'")
    with pytest.raises(UsageError, match=r"no Ray cluster answers at --address 127\.0\.0\.1:1"):
        tp.run(tiny_experiment.write(tmp_path), tmp_path / "out", executor=Ray("127.0.0.1:1"))
