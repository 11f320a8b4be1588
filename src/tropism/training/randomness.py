"""A training's own randomness: seeded inside, and the caller's as it was afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from tropism.randomness import accelerator, kept_generators


@contextmanager
def isolated_randomness(seed: int) -> Iterator[None]:
    """Seed every global generator inside, and leave the caller's as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with kept_generators(accelerator()):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
