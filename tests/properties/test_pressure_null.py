"""Where the trait direction is itself random, its p-value among random directions is uniform."""

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

import gradient_cases
import tropism as tp
from tropism.probes.random_controls import random_pressure
from tropism.stats.random_controls import random_p_values

SITE = tp.Site(0)


@pytest.mark.parametrize("kind", ["isotropic", "covariance"])
def test_random_directions_have_uniform_p_values(kind):
    generator = torch.Generator().manual_seed(0)
    factor = torch.diag(torch.linspace(0.1, 3, 24))
    # a strong common part where activations vary most: a null of the other kind would be far too narrow there
    common = 3 * torch.eye(24)[-1]
    cache = gradient_cases.cache({SITE: torch.randn((16, 24), generator=generator) + common})
    values = []
    for study in range(300):
        v = torch.randn(24, generator=generator)
        v = v @ factor if kind == "covariance" else v
        d = tp.Directions({SITE: v}, covariance={SITE: factor})
        values.append(random_p_values(random_pressure(cache, d, count=199, seed=study, kind=kind)).p.iloc[0])
    # p-values lie on a grid of 200: spread each over its cell, as the continuous test asks
    jitter = np.random.default_rng(0).uniform(0, 1 / 200, len(values))
    assert scipy_stats.kstest(np.array(values) - jitter, "uniform").pvalue > 0.01


def test_a_planted_direction_is_found():
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(64, generator=generator)
    cache = gradient_cases.cache({SITE: torch.randn((200, 64), generator=generator) - 0.5 * v / v.norm()})
    table = random_p_values(random_pressure(cache, tp.Directions({SITE: v}), count=199))
    assert table.p.iloc[0] == 1 / 200
    assert table.value.iloc[0] > 0


def test_the_scale_of_nothing_is_one_over_root_d():
    generator = torch.Generator().manual_seed(0)
    cache = gradient_cases.cache({SITE: torch.randn((1, 400), generator=generator)})
    d = tp.Directions({SITE: torch.randn(400, generator=generator)})
    table = random_pressure(cache, d, count=4000)
    assert table.cosine[1:].std() == pytest.approx(d.null_cosine(), rel=0.05)
