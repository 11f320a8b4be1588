"""Running sums of what a guard measures, kept on the device: no step waits for a number that nobody has asked for."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Sums:
    """Named running sums of scalars, float32 on the device where they are measured."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._total: Tensor | None = None

    def add(self, *values: Tensor) -> None:
        """One more measurement: a scalar for each name, in their order."""
        new = torch.stack([value.detach().float() for value in values])
        self._total = new if self._total is None else self._total.to(new.device) + new

    def take(self) -> dict[str, float] | None:
        """The sums since the last call, which begin again at nothing; None where nothing was measured."""
        if self._total is None:
            return None
        taken = dict(zip(self._names, self._total.tolist(), strict=True))
        self._total = None
        return taken


class Ratios:
    """A reader for `Attachment.meter`: each reading a function of the sums; one that divides by zero is left out."""

    def __init__(self, prefix: str, sums: Sums, of: Mapping[str, Callable[[dict[str, float]], float]]) -> None:
        self._prefix, self._sums, self._of = prefix, sums, of

    def __call__(self) -> dict[str, float]:
        taken = self._sums.take()
        if taken is None:
            return {}
        found: dict[str, float] = {}
        for name, compute in self._of.items():
            try:
                found[f"{self._prefix}/{name}"] = compute(taken)
            except ZeroDivisionError:  # nothing arrived, so there is no share of it: not measured is not 0
                continue
        return found
