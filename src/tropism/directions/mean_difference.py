"""Mean difference: the direction from the negative side's mean activation to the positive side's."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tropism.directions.finder import Collector, Finder, Found, Window
from tropism.errors import DirectionsError
from tropism.site import Site


@dataclass(frozen=True)
class MeanDifference(Finder):
    """`v = mean(h | positive) − mean(h | negative)`, `[1, d_model]`, not normalised: steering needs its length.

    Sums are float64 and nothing else is kept, so memory does not grow with the number of chats. The means are over
    chats, each chat one pooled vector, whatever its length. Source: the difference of means of Marks and Tegmark
    (2023), Arditi et al. (2024) and persona vectors (Chen et al., 2025).

    >>> MeanDifference().name
    'mean_difference'
    """

    name: ClassVar[str] = "mean_difference"

    def collector(self, site: Site, width: int, seed: int) -> Collector:
        return MeanDifferenceCollector(site, width)


class MeanDifferenceCollector(Collector):
    """Two running sums in float64."""

    def __init__(self, site: Site, width: int) -> None:
        self._site = site
        self._positive = RunningMean(width)
        self._negative = RunningMean(width)

    def add(self, window: Window) -> None:
        self._positive.add(window.positive)
        self._negative.add(window.negative)

    def result(self) -> Found:
        difference = self._positive.mean - self._negative.mean
        if float(difference.norm()) == 0:
            raise DirectionsError(
                f"the mean difference at {self._site} is exactly zero: both sides have the same activations there"
            )
        return Found(difference.to(torch.float32).unsqueeze(0))


class RunningMean:
    """The mean of rows that arrive in batches, in float64."""

    def __init__(self, width: int) -> None:
        self.total = torch.zeros(width, dtype=torch.float64)
        self.count = 0

    def add(self, rows: Float[Tensor, "n d"]) -> None:
        """Take rows in."""
        self.total += rows.to(torch.float64).sum(dim=0)
        self.count += rows.shape[0]

    @property
    def mean(self) -> Float[Tensor, "d"]:
        """The mean so far."""
        return self.total / max(self.count, 1)
