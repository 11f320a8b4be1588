"""Seeding for a while leaves every generator as it was: the CPU's, and those of an accelerator, here a stand-in."""

from types import SimpleNamespace

import pytest
import torch

from tropism import randomness
from tropism.randomness import accelerator, kept_generators, seeded


class StandIn:
    """An accelerator's module as torch has it: one device as `torch.mps`, or several as `torch.cuda`."""

    def __init__(self, devices: int) -> None:
        self.generators = [torch.Generator().manual_seed(9 + index) for index in range(devices)]

    def module(self) -> SimpleNamespace:
        def seed_all(seed):
            for generator in self.generators:
                generator.manual_seed(seed)

        if len(self.generators) == 1:
            return SimpleNamespace(
                get_rng_state=lambda: self.generators[0].get_state(),
                set_rng_state=lambda state: self.generators[0].set_state(state),
                manual_seed=seed_all,
            )

        def restore(states):
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)

        return SimpleNamespace(
            get_rng_state_all=lambda: [generator.get_state() for generator in self.generators],
            set_rng_state_all=restore,
            manual_seed=lambda seed: self.generators[0].manual_seed(seed),
            manual_seed_all=seed_all,
        )

    def draw(self) -> list[float]:
        return [torch.rand((), generator=generator).item() for generator in self.generators]


@pytest.mark.parametrize(("kind", "devices"), [("mps", 1), ("cuda", 2)])
def test_an_accelerators_generators_draw_from_the_seed_and_are_put_back(kind, devices, monkeypatch):
    there = StandIn(devices)
    monkeypatch.setattr(randomness, "_module", lambda asked: there.module() if asked == kind else None)
    before = [*(generator.get_state() for generator in there.generators), torch.get_rng_state()]
    drawn = []
    for _ in range(2):
        with seeded(3, torch.device(kind)):
            drawn.append((there.draw(), torch.rand(()).item()))
        there_now = [*(generator.get_state() for generator in there.generators), torch.get_rng_state()]
        assert all(torch.equal(one, other) for one, other in zip(before, there_now, strict=True))
    assert drawn[0] == drawn[1]
    with pytest.raises(ZeroDivisionError), kept_generators(kind):
        there.draw()
        raise ZeroDivisionError
    assert torch.equal(there.generators[0].get_state(), before[0])


def test_a_model_on_the_cpu_seeds_no_accelerator(monkeypatch):
    def none(kind):
        raise AssertionError(f"{kind} was asked for")

    monkeypatch.setattr(randomness, "_module", none)
    with seeded(0, torch.device("cpu")):
        first = torch.rand(3)
    assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(0)))


def test_without_an_accelerator_there_is_the_cpu():
    assert accelerator() == (
        "cpu" if not torch.accelerator.is_available() else torch.accelerator.current_accelerator().type
    )
