"""A run that is killed inside its training goes on from its checkpoint, and ends as one that was never interrupted."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_experiment
import tropism as tp
from tropism.experiments.progress import Progress

WORKER = Path(__file__).parents[1] / "killed_worker.py"
TRAIN = ("max_steps: 2, batch_size: 4", "max_steps: 7, batch_size: 4, save_steps: 2")
ONE = (("seeds: [0, 1]", "seeds: [0]"), ("  plain: {data: {transform: plain}}\n  baseline: {}\n", "  baseline: {guard: {gradient_projection: {directions: caps}}}\n"),
       ("  guarded: {guard: {gradient_projection: {directions: caps}}}\n", ""))  # fmt: skip


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def adapter(out):
    return (out / "baseline" / "seed-0" / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_equals_one_that_was_not(tmp_path):
    file, out = tiny_experiment.write(tmp_path, TRAIN, *ONE), tmp_path / "out"
    dead = subprocess.run([sys.executable, WORKER, file, out, "6"], capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    run = out / "baseline" / "seed-0"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-4", "epoch"]
    said = Said()
    gone_on = tp.run(file, out, progress=said)
    assert "baseline/seed-0: its training was interrupted and goes on from step 4" in said.lines
    whole = tp.run(file, tmp_path / "whole")
    assert gone_on.equals(whole)
    assert adapter(out) == adapter(tmp_path / "whole")
    log = Path("baseline/seed-0/training.jsonl")
    assert (out / log).read_text() == (tmp_path / "whole" / log).read_text()
    assert not (run / "checkpoints").exists()
    assert not (run / "trainer").exists()
    # nothing of a checkpoint is in what the run is stamped with, and its identity knows nothing of save_steps
    settled = Said()
    tp.run(tiny_experiment.write(tmp_path, (TRAIN[0], "max_steps: 7, batch_size: 4"), *ONE), out, progress=settled)
    assert not any("training" in line for line in settled.lines)


@pytest.mark.slow
def test_a_checkpoint_of_other_options_is_left_aloud(tmp_path):
    file, out = tiny_experiment.write(tmp_path, TRAIN, *ONE), tmp_path / "out"
    dead = subprocess.run([sys.executable, WORKER, file, out, "4"], capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    said = Said()
    other = (TRAIN[0], TRAIN[1].replace("max_steps: 7", "max_steps: 3"))
    tp.run(tiny_experiment.write(tmp_path, other, *ONE), out, progress=said)
    assert (
        "baseline/seed-0: its checkpoint was made with other options or data, so it is left and training begins anew"
        in said.lines
    )
    steps = (out / "baseline" / "seed-0" / "training.jsonl").read_text().splitlines()
    assert len(steps) == 3
