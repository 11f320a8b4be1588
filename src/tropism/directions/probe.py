"""A logistic probe: the direction along which a linear classifier tells the two sides apart."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tropism.directions.finder import Collector, Finder, Found, Window
from tropism.errors import DirectionsError
from tropism.site import Site


@dataclass(frozen=True)
class LogisticProbe(Finder):
    """`v = c·ŵ [1, d_model]`, with `ŵ` the unit normal of an L2-regularised logistic regression on pooled activations.

    Dimensions are standardised for the fit, and the normal is taken back to activation space. The length
    `c = ŵ·(m⁺ − m⁻)` is the mean difference along the normal, so that steering by `v` moves as far as the sides are
    apart. `C` is scikit-learn's inverse regularisation. Keeps every chat's pooled activation, `4·d_model` bytes a chat
    and site.

    A probe's normal is the best *discriminator*: it discounts dimensions that vary, so it need not be what the model
    itself writes. Source: probing as in Alain and Bengio (2016).

    >>> LogisticProbe(C=0.01).name
    'logistic_probe'
    """

    C: float = 0.1
    """Inverse strength of the L2 regularisation, as in scikit-learn."""

    name: ClassVar[str] = "logistic_probe"

    def __post_init__(self) -> None:
        if not self.C > 0:
            raise DirectionsError(f"LogisticProbe.C must be above 0, found {self.C}")

    def collector(self, site: Site, width: int, seed: int) -> Collector:
        return ProbeCollector(self.C, site)


class ProbeCollector(Collector):
    """Every row of both sides."""

    def __init__(self, C: float, site: Site) -> None:
        self._C, self._site = C, site
        self._positive: list[Tensor] = []
        self._negative: list[Tensor] = []

    def add(self, window: Window) -> None:
        self._positive.append(window.positive)
        self._negative.append(window.negative)

    def result(self) -> Found:
        from sklearn.linear_model import LogisticRegression

        positive, negative = (torch.cat(side).to(torch.float64) for side in (self._positive, self._negative))
        rows = torch.cat([positive, negative])
        scale = rows.std(dim=0, correction=0)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        features = ((rows - rows.mean(dim=0)) / scale).numpy()
        labels = np.repeat([1, 0], [len(positive), len(negative)])
        fit = LogisticRegression(C=self._C, class_weight="balanced", max_iter=5000, tol=1e-6).fit(features, labels)
        normal = torch.from_numpy(fit.coef_[0]) / scale
        if float(normal.norm()) == 0:
            raise DirectionsError(
                f"the probe at {self._site} has no normal: both sides have the same activations there"
            )
        unit = normal / normal.norm()
        length = float(unit @ (positive.mean(dim=0) - negative.mean(dim=0)))
        return Found(
            (abs(length) * unit).to(torch.float32).unsqueeze(0),
            {"training_accuracy": float(fit.score(features, labels))},
        )
