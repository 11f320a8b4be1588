"""Torch's global generators, seeded for a while and put back: the CPU's, and those of whichever accelerator there is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def kept_generators(kind: str) -> Iterator[None]:
    """Put the CPU's generator, and those of all devices of a kind (`cuda`, `mps`, `xpu`), back as they were."""
    own = torch.get_rng_state()
    module = None if kind == "cpu" else _module(kind)
    theirs = [] if module is None else _states(module)
    try:
        yield
    finally:
        torch.set_rng_state(own)
        if module is not None:
            _restore(module, theirs)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that a model on `device` draws from, and put them back afterwards; no others are touched."""
    with kept_generators(device.type):
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            module = _module(device.type)
            getattr(module, "manual_seed_all", module.manual_seed)(seed)
        yield


def accelerator() -> str:
    """The kind of accelerator that torch sees here, else `cpu`."""
    if not torch.accelerator.is_available():
        return "cpu"
    found = torch.accelerator.current_accelerator()
    return "cpu" if found is None else found.type


def _module(kind: str) -> Any:
    return torch.get_device_module(kind)


def _states(module: Any) -> list[torch.Tensor]:
    # MPS is one device, whose functions take no index.
    if not hasattr(module, "get_rng_state_all"):
        return [module.get_rng_state()]
    states: list[torch.Tensor] = module.get_rng_state_all()
    return states


def _restore(module: Any, states: list[torch.Tensor]) -> None:
    if hasattr(module, "set_rng_state_all"):
        module.set_rng_state_all(states)
    else:
        module.set_rng_state(states[0])
