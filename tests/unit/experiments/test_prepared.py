"""Preparing an experiment: weights are loaded only for what has to be found, and another process can do the runs."""

import json
import pickle
import subprocess
import sys

import pytest

import tiny_experiment
import tropism as tp
from tropism import models
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.one_run import run_one
from tropism.experiments.prepared import prepare_experiment
from tropism.experiments.progress import Progress
from tropism.experiments.store import Folder, RunKey

ONE_SEED = ("seeds: [0, 1]", "seeds: [0]")


def prepare(file, out):
    experiment = Experiment.load(file)
    source = models.resolve(experiment.model)
    return prepare_experiment(experiment, Folder.of(out, experiment), source, models.load_tokenizer(source), Progress())


@pytest.fixture
def loads(monkeypatch):
    """Counts how often weights are loaded."""
    count, load_source = [], models.load_source
    monkeypatch.setattr(models, "load_source", lambda *a, **k: count.append(1) or load_source(*a, **k))
    return count


def test_weights_are_loaded_once_to_find_directions_and_not_at_all_where_they_are_there(tmp_path, loads):
    file = tiny_experiment.write(tmp_path, ONE_SEED)
    prepare(file, tmp_path / "out")
    assert len(loads) == 1
    prepare(file, tmp_path / "out")
    assert len(loads) == 1


def test_a_finished_experiment_loads_no_weights(tmp_path, loads):
    file = tiny_experiment.write(tmp_path, ONE_SEED)
    tp.run(file, tmp_path / "out", only=["baseline"])
    loads.clear()
    (tmp_path / "out/report.html").unlink()
    tp.run(file, tmp_path / "out", only=["baseline"])
    assert loads == []
    assert (tmp_path / "out/report.html").is_file()


def test_another_process_does_the_same_run(tmp_path):
    prepared = prepare(tiny_experiment.write(tmp_path, ONE_SEED), tmp_path / "out")
    key = RunKey("guarded", 0)
    assert run_one(prepared, key, Progress()).failed == ""
    here = prepared.folder.run_path(key)
    expected = json.loads((here / "DONE.json").read_text())["files"]
    (here / "TRAINED.json").unlink()  # so that it is trained again
    (tmp_path / "prepared.pickle").write_bytes(pickle.dumps((prepared, key)))
    work = (
        "import pickle, sys; from tropism.experiments.one_run import run_one; "
        "from tropism.experiments.progress import Progress; "
        "prepared, key = pickle.load(open(sys.argv[1], 'rb')); sys.exit(run_one(prepared, key, Progress()).failed or 0)"
    )
    subprocess.run([sys.executable, "-c", work, tmp_path / "prepared.pickle"], check=True)
    found = json.loads((here / "DONE.json").read_text())["files"]
    same = ("adapter/adapter_model.safetensors", "responses.jsonl", "measurements.jsonl")
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}
