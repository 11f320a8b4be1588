"""A sketch of how activations vary at a site, for controls that vary as they do."""

import torch
from jaxtyping import Float
from torch import Tensor

from tropism.directions.finder import Window
from tropism.directions.mean_difference import RunningMean

ROWS = 64


class CovarianceSketch:
    """A factor `F [m, d_model]`, `m ≤ 64`, with `E[FᵀF]` the covariance of activations within their own side.

    Every row `x_i` enters all of `F` with random signs: `F += s_i ⊗ x_i / √m`, so memory does not depend on the number
    of chats and no chat is left out. Each side is centred on its own mean, so that the trait's direction, which is the
    difference of the means, is not in the covariance its controls are drawn from.
    """

    def __init__(self, width: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._sums = [torch.zeros((ROWS, width), dtype=torch.float64) for _ in range(2)]
        self._signs = [torch.zeros(ROWS, dtype=torch.float64) for _ in range(2)]
        self._means = [RunningMean(width) for _ in range(2)]

    def add(self, window: Window) -> None:
        """Take a window in."""
        for side, rows in enumerate((window.positive, window.negative)):
            signs = torch.randint(0, 2, (rows.shape[0], ROWS), generator=self._generator).to(torch.float64) * 2 - 1
            self._sums[side] += signs.T @ rows.to(torch.float64)
            self._signs[side] += signs.sum(dim=0)
            self._means[side].add(rows)

    def factor(self) -> Float[Tensor, "m d"]:
        """`F`, float32."""
        centred = [
            sums - signs.unsqueeze(1) * mean.mean
            for sums, signs, mean in zip(self._sums, self._signs, self._means, strict=True)
        ]
        count = sum(mean.count for mean in self._means)
        factor: Tensor = (centred[0] + centred[1]) / (ROWS * max(count - 2, 1)) ** 0.5
        return factor.to(torch.float32)
