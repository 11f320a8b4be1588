"""The output-orthogonality loss against its definition, and that descending it does what it says."""

import pytest
import torch

import routing_oracle as oracle
import tiny
from tropism.errors import AttachError, GuardNotInForce
from tropism.interventions.output_orthogonality import output_overlap, squared_cosine
from tropism.interventions.routing import GradientRouting


def test_it_is_the_mean_squared_cosine():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 5, 8, generator=g, dtype=torch.float64) for _ in range(2))
    assert torch.allclose(squared_cosine(a, b), torch.cosine_similarity(a, b, dim=-1).square().mean(), atol=1e-12)
    assert squared_cosine(a, -2 * a) == pytest.approx(1)


def test_zero_outputs_overlap_nothing_and_have_no_gradient():
    a = torch.zeros(2, 4, requires_grad=True)
    loss = squared_cosine(a, torch.ones(2, 4))
    loss.backward()
    assert loss == 0
    assert (a.grad == 0).all()


def test_a_descent_lowers_it_beside_routing():
    model = oracle.model(dtype=torch.float32)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    seen = []
    with GradientRouting().attach(model), output_overlap(model) as overlap:
        for _ in range(5):
            optimizer.zero_grad()
            model(**tiny.batch(), route=torch.tensor([0, 1, 0]))
            loss = overlap.loss()
            loss.backward()
            optimizer.step()
            seen.append(float(loss.detach()))
    assert seen[-1] < 0.9 * seen[0]


def test_it_says_where_it_measures_nothing():
    model = oracle.model()
    with output_overlap(model) as overlap, pytest.raises(GuardNotInForce, match="no forward pass with both adapters"):
        overlap.loss()
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(AttachError, match="found none"), output_overlap(tiny.model()):
        pass
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(AttachError, match="gradient checkpointing must be off"), output_overlap(model):
        pass
