"""DDP and FSDP2 on two CPU processes learn what one process learns, and the constraint holds in all."""

import pytest
import torch
from torch.optim import AdamW

import distributed_constraint
import tropism as tp
from naive_constraint import lora, train, trainable
from processes import run_workers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def u():
    model = lora(seed=1)
    train(model, AdamW(trainable(model), lr=1e-2), steps=10, seed=9)
    return tp.parameter_directions(model)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("space", ["delta_weight", "parameter"])
def test_two_processes_equal_one(u, kind, space, tmp_path):
    options = {"space": space}
    leaks, expected = distributed_constraint.alone(options, u)
    file = u.save(tmp_path / "u.safetensors")
    given = (kind, options, str(file), str(tmp_path))
    run_workers(distributed_constraint.worker, *[(rank, *given) for rank in range(2)])
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for rank in ranks:
        assert max(rank["leaks"]) < 1e-6
        for name, value in expected.items():
            found = rank["learned"][name]
            torch.testing.assert_close(found, value, atol=2e-6, rtol=1e-4)
            assert torch.equal(found, ranks[0]["learned"][name])
    assert max(leaks) < 1e-6
