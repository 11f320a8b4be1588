"""One flipped bit in what an experiment keeps: it is noticed, said, and made again; never evaluated or averaged."""

import json
import shutil

import pandas as pd
import pytest
import torch

import tiny_experiment
import tropism as tp
from tropism.errors import RunFolderError
from tropism.experiments.after.chat import open_chat
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.progress import Progress

CHANGES = (
    ("seeds: [0, 1]", "seeds: [0]"),
    ("conditions:\n", "adapters:\n  skill: {data: {source: word_problems, size: 8, seed: 3}}\nstart_from: skill\nconditions:\n"),
)  # fmt: skip


class Told(Progress):
    def __init__(self):
        self.said, self.todo = [], None

    def say(self, line):
        self.said.append(line)

    def plan(self, todo, finished):
        self.todo = list(todo)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("study")
    file = tiny_experiment.write(path, *CHANGES)
    return file, path / "out", tp.run(file, path / "out")


@pytest.fixture
def copied(finished, tmp_path):
    """The experiment, and a copy of its results folder to be damaged."""
    file, out, results = finished
    return file, shutil.copytree(out, tmp_path / "out"), results


def flip(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def go_on(file, out, results):
    """Run again; the results must be what they were."""
    told = Told()
    pd.testing.assert_frame_equal(tp.run(file, out, progress=told), results)
    return told


def test_a_flipped_bit_in_an_adapter_trains_it_again(copied):
    file, out, results = copied
    adapter = out / "baseline/seed-0/adapter/adapter_model.safetensors"
    whole = adapter.read_bytes()
    flip(adapter)
    told = go_on(file, out, results)
    assert told.todo == ["baseline/seed-0"]
    assert (
        "baseline/seed-0: adapter/adapter_model.safetensors was changed after it was written; it is trained again"
        in told.said
    )
    assert adapter.read_bytes() == whole


def test_an_adapter_without_hashes_is_not_taken_for_trained(copied):
    file, out, results = copied
    stamp = out / "baseline/seed-0/TRAINED.json"
    stamp.write_text(json.dumps({"train": json.loads(stamp.read_text())["train"]}))
    (out / "baseline/seed-0/DONE.json").unlink()
    told = go_on(file, out, results)
    assert any(
        "has no hashes of files, since an older version wrote it; it is trained again" in line for line in told.said
    )


def test_a_changed_answer_evaluates_again_and_trains_nothing(copied):
    file, out, results = copied
    adapter = out / "baseline/seed-0/adapter/adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns
    flip(out / "baseline/seed-0/responses.jsonl")
    told = go_on(file, out, results)
    assert "baseline/seed-0: responses.jsonl was changed after it was written; it is evaluated again" in told.said
    assert adapter.stat().st_mtime_ns == before


def test_a_flipped_bit_in_a_prepared_adapter_is_refused_by_chat_and_trained_again_by_run(copied):
    file, out, results = copied
    adapter = out / "adapters/skill/adapter/adapter_model.safetensors"
    whole = adapter.read_bytes()
    flip(adapter)
    with pytest.raises(
        RunFolderError, match="the prepared adapter 'skill' cannot be used: .* run the experiment again"
    ):
        open_chat(out)
    told = go_on(file, out, results)
    assert told.todo == []
    assert any(
        line.startswith("training the adapter 'skill': adapter/adapter_model.safetensors was") for line in told.said
    )
    assert adapter.read_bytes() == whole
    open_chat(out)


@pytest.mark.parametrize("name", ["caps.safetensors", "caps.validity.json", "caps.kept.json"])
def test_damaged_directions_are_found_again(copied, name):
    file, out, results = copied
    whole = tp.Directions.load(out / "directions/caps.safetensors")
    flip(out / "directions" / name)
    (out / "guarded/seed-0/DONE.json").unlink()  # so that there is something to do
    told = go_on(file, out, results)
    assert any(line.startswith("directions caps: caps.") and line.endswith("they are made again") for line in told.said)
    again = tp.Directions.load(out / "directions/caps.safetensors")
    assert all(torch.equal(again.vectors[site], whole.vectors[site]) for site in whole.sites)


def test_a_damaged_adapter_is_averaged_nowhere(copied):
    file, out, _ = copied
    flip(out / "baseline/seed-0/adapter/adapter_model.safetensors")
    experiment = Experiment.load(file)
    results = tp.run(experiment, out, only=["plain"])
    assert "baseline" not in set(results["condition"])
