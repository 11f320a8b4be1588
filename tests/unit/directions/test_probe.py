"""The logistic probe: separates what can be separated, points and reaches from one side to the other."""

import numpy as np
import pytest
import torch

import tropism as tp
from tropism.directions.finder import Window
from tropism.errors import DirectionsError

SITE = tp.Site(0)


def run(positive, negative, C=0.1):
    collector = tp.LogisticProbe(C=C).collector(SITE, positive.shape[1], 0)
    collector.add(Window(positive, negative, False))
    return collector.result()


def test_its_length_is_the_mean_difference_along_it():
    generator = torch.Generator().manual_seed(0)
    negative = torch.randn((60, 12), generator=generator)
    positive = torch.randn((40, 12), generator=generator) + torch.tensor([3.0] + [0.0] * 11)
    vector = run(positive, negative).vectors[0]
    along = float((positive.mean(0) - negative.mean(0)) @ vector / vector.norm())
    assert along == pytest.approx(float(vector.norm()), rel=1e-4)
    assert along > 0


def test_the_normal_is_that_of_gradient_descent_on_the_same_loss():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((80, 5), generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(5, generator=generator, dtype=torch.float64) > 0).double()
    positive, negative = x[y == 1], x[y == 0]
    both = torch.cat([positive, negative])
    scale = both.std(0, correction=0)
    features = (both - both.mean(0)) / scale
    labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).double()
    weight = torch.where(labels == 1, 80 / (2 * len(positive)), 80 / (2 * len(negative)))
    w, b = (
        torch.zeros(5, dtype=torch.float64, requires_grad=True),
        torch.zeros(1, dtype=torch.float64, requires_grad=True),
    )
    optimizer = torch.optim.LBFGS([w, b], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        terms = torch.nn.functional.binary_cross_entropy_with_logits(features @ w + b, labels, weight, reduction="sum")
        value = 0.1 * terms + 0.5 * w @ w
        value.backward()
        return value

    optimizer.step(loss)
    normal = (w / scale).detach().numpy()
    found = run(positive.float(), negative.float()).vectors[0].double().numpy()
    assert found @ normal / np.linalg.norm(found) / np.linalg.norm(normal) > 1 - 1e-6


def test_it_discounts_dimensions_that_vary():
    """Where a shared nuisance hides the difference, the probe finds a way around it; the mean difference cannot."""
    generator = torch.Generator().manual_seed(0)
    nuisance = torch.randn((2, 500, 1), generator=generator) * 5
    noise = torch.randn((2, 500, 2), generator=generator) * 0.1
    base = torch.cat([nuisance + noise[..., :1], nuisance + noise[..., 1:]], dim=-1)
    positive, negative = base[0] + torch.tensor([1.0, 0.0]), base[1]
    vector = run(positive, negative).vectors[0]
    assert float(vector[0] * vector[1]) < 0


def test_bad_input_is_refused():
    with pytest.raises(DirectionsError, match="LogisticProbe.C must be above 0, found 0"):
        tp.LogisticProbe(C=0.0)
    with pytest.raises(DirectionsError, match=r"the probe at resid_post.0 has no normal"):
        run(torch.ones(4, 3), torch.ones(4, 3))
