"""The guard that the trainer matrix and the distributed tests run: one of each, at three sites of `tiny.model`."""

import torch

import tropism as tp


def guard() -> tp.Intervention:
    """Two of the three act on response tokens only."""
    generator = torch.Generator().manual_seed(3)
    sites = [tp.Directions({tp.Site(layer): torch.randn(1, 32, generator=generator)}) for layer in range(3)]
    return (
        tp.Ablation(sites[0], positions="response")
        | tp.GradientProjection(sites[1], positions="response")
        | tp.Steering(sites[2], coefficient=0.5)
    )
