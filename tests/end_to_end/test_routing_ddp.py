"""Two data-parallel processes train what one process trains on the whole batch."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from processes import run_workers

WORKER = Path(__file__).with_name("routing_ddp_worker.py")


def launch(world, folder):
    run_workers(WORKER, *[(rank, world, folder) for rank in range(world)])
    return load_file(folder / f"world-{world}.safetensors")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    one, two = launch(1, tmp_path), launch(2, tmp_path)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
