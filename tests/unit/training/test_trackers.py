"""Trackers: one tracked run per training, named after it, with the guard's readings, in a folder that stays."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
import tropism as tp
from tropism.data.render import render
from tropism.training.options import TrainOptions
from tropism.training.supervised import Row, train
from tropism.training.trackers import Tracking, tracked

SHARE = "guard/gradient_projection/resid_post.1/share_removed"
CHATS = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "yes " * (i + 1)}] for i in range(4)]


def trained(tmp_path, tracker, runs=("caft/seed-0", "caft/seed-1")):
    """Several trainings in one process, as in an experiment; each one's own folder is gone afterwards."""
    rows = [Row(render(tiny.tokenizer(), chat), {}) for chat in CHATS]
    options = TrainOptions(max_steps=2, batch_size=2, report_to=[tracker], bf16=False)
    d = tp.Directions({tp.Site(1): torch.ones(32)})
    for run in runs:
        model = get_peft_model(tiny.model(), LoraConfig(target_modules="all-linear"))
        log = tmp_path / run / "training.jsonl"
        tracking = Tracking("caps", run, tmp_path / "tracking")
        train(model, rows, options, pad_id=0, seed=0, log=log, guard=tp.GradientProjection(d), tracking=tracking)
        shutil.rmtree(log.parent / "trainer", ignore_errors=True)
        assert SHARE in log.read_text(encoding="utf-8")
    return tmp_path / "tracking"


def test_tensorboard(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = trained(tmp_path, "tensorboard")
    for run in ("caft/seed-0", "caft/seed-1"):
        read = events.EventAccumulator(str(folder / "tensorboard" / run))
        read.Reload()
        assert f"train/{SHARE}" in read.Tags()["scalars"]
        assert len(read.Scalars(f"train/{SHARE}")) == 2


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = trained(tmp_path, "wandb")
    import wandb

    assert wandb.run is None
    written = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(written) == 2
    for name, file in zip((b"caps/caft/seed-0", b"caps/caft/seed-1"), written, strict=True):
        content = file.read_bytes()
        assert name in content
        assert SHARE.encode() in content


@pytest.mark.parametrize("tracker", ["trackio", "mlflow"])
def test_the_other_trackers(tmp_path, tracker):
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    # In a process of its own: Trackio reads its folder when it is imported.
    code = f"import pathlib, test_trackers as t; t.trained(pathlib.Path({str(tmp_path)!r}), {tracker!r})"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "writes to" not in done.stderr
    assert any((tmp_path / "tracking").rglob("*.db"))


def test_where_trackio_writes_is_said_when_it_was_imported_before(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio.utils", SimpleNamespace(TRACKIO_DIR=tmp_path / "other"))
    tracking = Tracking("caps", "caft/seed-0", tmp_path / "tracking")
    with pytest.warns(UserWarning, match="imported before and writes to .*other"), tracked(["trackio"], tracking):
        pass


def test_the_environment_is_put_back_and_what_the_user_set_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    tracking = Tracking("caps", "caft/seed-0", tmp_path / "tracking")
    with pytest.raises(ZeroDivisionError), tracked(["tensorboard"], tracking):
        assert os.environ["WANDB_PROJECT"] == "mine"
        assert os.environ["TENSORBOARD_LOGGING_DIR"].endswith("tracking/tensorboard/caft/seed-0")
        raise ZeroDivisionError
    assert os.environ["WANDB_PROJECT"] == "mine"
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    with tracked([], Tracking("caps", "caft/seed-1", tmp_path / "none")):
        pass
    assert not (tmp_path / "none").exists()
