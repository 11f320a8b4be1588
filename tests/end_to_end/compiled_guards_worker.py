"""Guards under `torch.compile`, in a process without the test run's type checks, which dynamo cannot trace."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch

import tiny
import tropism as tp
from hand_edits import assert_same
from tropism.errors import GuardNotInForce


def gradients(called: torch.nn.Module, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    called(**tiny.batch()).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def main() -> None:
    d = tp.Directions({tp.Site(0): torch.randn(2, 32, generator=torch.Generator().manual_seed(0))})
    guard = tp.Ablation(d, positions="response") | tp.GradientProjection(d)
    plain, model = tiny.model(layers=1), tiny.model(layers=1)
    with guard.attach(plain) as attachment:
        wanted, told = gradients(plain, plain), attachment.readings()

    compiled = torch.compile(model, backend="eager")
    with guard.attach(compiled) as attachment:
        found, read = gradients(compiled, model), attachment.readings()
    assert_same(wanted, found, 1e-5)
    assert told.keys() == read.keys()
    assert all(abs(told[name] - read[name]) < 1e-5 for name in told), (told, read)

    torch._dynamo.reset()  # else what it compiled above is used again, guard and all
    late = tiny.model(layers=1)
    compiled = torch.compile(late, backend="eager")
    compiled(**tiny.batch())
    message = "a torch.compile from before the guard was attached"
    with pytest.raises(GuardNotInForce, match=message), guard.attach(late):
        compiled(**tiny.batch())


if __name__ == "__main__":
    main()
