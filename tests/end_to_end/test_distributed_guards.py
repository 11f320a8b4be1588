"""Two processes on the CPU (gloo), under DDP and FSDP2, give the single process's guarded gradients."""

from pathlib import Path

import pytest
import torch

import tiny
from hand_edits import assert_same, differ, gradients
from matrix_guard import guard
from processes import run_workers

WORKER = Path(__file__).with_name("guards_distributed_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes left the gradients of every case."""
    folder = tmp_path_factory.mktemp("distributed")
    run_workers(WORKER, *[(rank, folder) for rank in range(2)])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_same_gradients_as_one_process(kind, checkpointing, folder):
    found = torch.load(folder / f"{kind}-{checkpointing}.pt", weights_only=True)
    model, batch = tiny.model(), tiny.batch(4)
    with guard().attach(model):
        _, wanted = gradients(model, batch)
    assert_same(wanted, found, 1e-5)
    assert differ(gradients(model, batch)[1], found) > 1e-2
