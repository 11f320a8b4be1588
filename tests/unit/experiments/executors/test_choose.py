"""Who does the runs, by name; what does nothing, is missing or would be done twice is one sentence."""

import sys
from types import SimpleNamespace

import pytest

import tiny_experiment
import tropism as tp
from tropism.errors import MissingExtra, UsageError
from tropism.experiments.executors.choose import executor, read_resources
from tropism.experiments.executors.on_ray import Ray, _connect, _tell_of_no_room
from tropism.experiments.executors.pool import Pool, environment
from tropism.experiments.executors.slurm import Slurm


def test_each_name_has_its_executor(monkeypatch):
    monkeypatch.setattr("tropism.experiments.executors.choose.can_fork", lambda: False)
    assert executor("local") is None
    assert executor("pool", 3) == Pool(3)
    assert executor("ray", address="head:6379", resources={"num_gpus": 0.25}) == Ray("head:6379", {"num_gpus": 0.25})
    assert executor("slurm", 2) == Slurm(2, {})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("local", 2), "--workers does nothing with --executor local, found 2; drop it"),
        (("pool", 2, "head"), "--address does nothing with --executor pool"),
        (("pool", 2, None, {"num_gpus": 1}), "--resource does nothing with --executor pool"),
        (("ray", 4), "--workers does nothing with --executor ray"),
        (("pool",), "--executor pool needs --workers, a number from 1 on, found None"),
        (("slurm", 0), "--executor slurm needs --workers, a number from 1 on, found 0"),
    ],
)
def test_an_option_that_does_nothing_or_is_missing(given, said):
    with pytest.raises(UsageError, match=said):
        executor(*given)


def test_resources_are_read_as_yaml_reads_them():
    read = read_resources(["num_gpus=0.25", "slurm_partition=gpu", "timeout_min=60"])
    assert read == {"num_gpus": 0.25, "slurm_partition": "gpu", "timeout_min": 60}
    with pytest.raises(UsageError, match="--resource takes NAME=VALUE, as in num_gpus=0.25, found 'num_gpus'"):
        read_resources(["num_gpus"])


def test_threads_are_divided_and_gpus_given_out_in_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    seen = [environment(index, 3, 2)["CUDA_VISIBLE_DEVICES"] for index in range(4)]
    assert seen == ["4", "6", "4", "6"]
    assert environment(0, 3, 0)["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert environment(1, 3, 2)["CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in environment(1, 3, 0)


@pytest.mark.parametrize(
    ("workers", "runs", "device", "said"),
    [
        (2, 1, "cpu", "there is 1 run to do, which a pool does no faster; --processes N divides a run"),
        (4, 3, "cpu", "there are 3 runs to do, so that 1 of 4 workers have nothing to do"),
        (4, 9, "cpu", "4 workers share 2 threads, which gains nothing over --workers 2"),
        (4, 9, "cuda", ""),
        (2, 9, "cpu", ""),
        (1, 1, "cpu", ""),
    ],
)
def test_a_pool_says_where_it_gains_nothing(monkeypatch, workers, runs, device, said):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    job = SimpleNamespace(todo=range(runs), prepared=SimpleNamespace(device=device))
    assert Pool(workers).doubts(job) == ([said] if said else [])


@pytest.mark.parametrize(("chosen", "package", "extra"), [(Ray(), "ray", "ray"), (Slurm(1), "submitit", "slurm")])
def test_a_missing_extra_is_one_sentence(monkeypatch, chosen, package, extra):
    monkeypatch.setitem(sys.modules, package, None)  # what import finds where it is not installed
    with pytest.raises(MissingExtra, match=rf"needs the package '{package}'.*pip install 'tropism\[{extra}\]'"):
        chosen.start(None)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", r"no Ray cluster answers at --address 127\.0\.0\.1:1: .*; start one with ray start --head"),
        ("head", r"--address must be HOST:PORT of a Ray cluster, as in head:6379, found 'head'"),
        ("head:", r"--address must be HOST:PORT"),
    ],
)
def test_an_address_that_does_not_answer_or_is_none(address, said):
    with pytest.raises(UsageError, match=said):
        _connect(SimpleNamespace(is_initialized=lambda: False), address)


def test_where_no_node_could_ever_do_a_run_that_is_said(caplog):
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}}]
    _tell_of_no_room(nodes, {"num_cpus": 4})
    assert not caplog.records
    _tell_of_no_room(nodes, {"num_cpus": 1, "num_gpus": 1})
    assert "no node has 1 CPU, 1 GPU (the most is 4 CPU, 0 GPU), so runs wait for one that joins" in caplog.text


def test_a_launcher_that_started_it_twice_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UsageError, match="as process 1 of 2, and each of them would do every run"):
        tp.run(tiny_experiment.write(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
