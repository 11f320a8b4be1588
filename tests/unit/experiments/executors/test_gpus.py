"""Whether runs side by side fit, and whether each process of a run has a GPU."""

import re

import pytest

from tropism.errors import UsageError
from tropism.experiments.executors.gpus import GIB, check_gpus_per_node, crowding, gpus_of_a_task
from tropism.experiments.executors.on_ray import Ray
from tropism.experiments.executors.pool import Pool, environment


@pytest.mark.parametrize("runs", [2, 3, 4, 7])
@pytest.mark.parametrize("shared", [0, 2])
def test_what_is_said_to_fit_fits_and_one_more_does_not(runs, shared):
    each, room = 5, 16

    def taken(count):
        return shared + count * (each - shared)

    said = crowding(runs, each * GIB, shared * GIB, room * GIB, "the GPU")
    assert bool(said) == (taken(runs) > room)
    if said:
        fit = int(re.search(r": (\d+) would fit", said)[1])
        assert taken(fit) <= room < taken(fit + 1)
        assert f"the GPU has 16.0 GiB, and {runs} at a time will take about {taken(runs)}.0" in said


def test_one_run_crowds_nothing_and_none_may_fit():
    assert crowding(1, 9 * GIB, 0, 2 * GIB, "the GPU") == ""
    assert crowding(2, 9 * GIB, 0, 2 * GIB, "the GPU").endswith("none would fit")


@pytest.mark.parametrize(
    ("executor", "device", "gpus", "processes", "expected"),
    [
        (Pool(8), "cuda", 4, 1, 2), (Pool(8), "cuda", 4, 2, 4), (Pool(3), "cuda", 4, 1, 1), (Pool(8), "cpu", 0, 1, 8),
        (Pool(90), "cpu", 0, 1, 20), (Ray(None, {"num_gpus": 0.25}), "cuda", 1, 1, 4), (Ray(), "cuda", 1, 1, 1),
        (Ray(None, {"num_gpus": 2}), "cuda", 4, 2, 1), (Ray(None, {"num_gpus": 0.25}), "cpu", 0, 1, 1),
    ],
)  # fmt: skip
def test_how_many_of_twenty_runs_share_a_gpu(executor, device, gpus, processes, expected):
    assert executor.at_once(20, device, gpus, processes) == expected


def test_a_worker_of_the_pool_sees_a_gpu_for_each_process_of_its_runs(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3,5,7,9")
    seen = [environment(index, 1, 5, 2)["CUDA_VISIBLE_DEVICES"] for index in range(4)]
    assert seen == ["1,3", "5,7", "1,3", "5,7"]


def test_a_task_has_a_gpu_for_each_process_or_is_refused():
    assert gpus_of_a_task({}, 3) == 3
    assert gpus_of_a_task({"num_gpus": 0.25}, 1) == 0.25
    with pytest.raises(UsageError, match=r"--resource num_gpus must be at least train.processes, 2, .*found 0.25"):
        gpus_of_a_task({"num_gpus": 0.25}, 2)
    with pytest.raises(UsageError, match=r"--resource num_gpus must be above 0 on device cuda, found 0"):
        gpus_of_a_task({"num_gpus": 0}, 1)
    check_gpus_per_node({}, 2)
    check_gpus_per_node({"gpus_per_node": 2}, 2)
    with pytest.raises(UsageError, match=r"--resource gpus_per_node must be at least train.processes, 2, .*found 1"):
        check_gpus_per_node({"gpus_per_node": 1}, 2)
