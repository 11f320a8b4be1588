"""Two data-parallel processes train what one process trains on the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("routing_ddp_worker.py")


def launch(world, folder):
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    return load_file(folder / f"world-{world}.safetensors")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    one, two = launch(1, tmp_path), launch(2, tmp_path)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
