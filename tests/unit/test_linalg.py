"""Bases, projections and angles against dense linear algebra."""

import pytest
import torch

from tropism import linalg


@pytest.mark.parametrize(("k", "d"), [(1, 1), (1, 7), (3, 7), (7, 7), (12, 7), (8, 64)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_basis_is_orthonormal_and_spans_the_rows(k, d, scale, generator):
    rows = torch.randn(k, d, generator=generator) * scale
    V = linalg.orthonormal_basis(rows)
    assert V.dtype == torch.float32
    assert V.shape == (min(k, d), d)
    torch.testing.assert_close(V @ V.T, torch.eye(len(V)), atol=1e-6, rtol=0)
    assert ((rows / scale) @ V.T @ V - rows / scale).abs().max() < 1e-5


def test_dependent_rows_are_dropped(generator):
    a, b = torch.randn(2, 16, generator=generator)
    V = linalg.orthonormal_basis(torch.stack([a, 2 * a, b, a - b, torch.zeros(16)]))
    assert V.shape == (2, 16)
    torch.testing.assert_close(V[0], a / a.norm())
    assert linalg.orthonormal_basis(torch.zeros(3, 16)).shape == (0, 16)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4)])
def test_project_out_is_the_dense_projector(strength, shape, generator):
    h = torch.randn(*shape, 10, generator=generator, dtype=torch.float64)
    V = linalg.orthonormal_basis(torch.randn(3, 10, generator=generator))
    P = V.double().T @ V.double()
    torch.testing.assert_close(linalg.project_out(h, V, strength), h - strength * h @ P)
    torch.testing.assert_close(linalg.project_onto(h, V), h @ P)
    torch.testing.assert_close(linalg.coordinates(h, V), h @ V.double().T)


def test_what_was_removed_is_what_is_missing(generator):
    h = torch.randn(2, 5, 10, generator=generator, dtype=torch.float64)
    V = linalg.orthonormal_basis(torch.randn(3, 10, generator=generator))
    weights = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]]).bool().unsqueeze(-1)
    origin = torch.tensor([1.0, -2.0, 0.5])
    edited, removed = linalg.remove_component(h, V, 0.5, weights=weights, origin=origin)
    torch.testing.assert_close(removed, 0.5 * weights * (h @ V.double().T - origin))
    torch.testing.assert_close(edited, h - removed @ V.double())
    assert torch.equal(edited[~weights.squeeze(-1)], h[~weights.squeeze(-1)])


def test_the_gradient_of_both_kinds_of_removal(generator):
    V = linalg.orthonormal_basis(torch.randn(3, 10, generator=generator))
    P = V.double().T @ V.double()
    h = torch.randn(4, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    g = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    (through,) = torch.autograd.grad(linalg.project_out(h, V), h, g)
    torch.testing.assert_close(through, g - g @ P)
    (whole,) = torch.autograd.grad(linalg.remove_component(h, V, straight_through=True)[0], h, g)
    assert torch.equal(whole, g)


def test_autograd_keeps_no_activation(generator):
    V = linalg.orthonormal_basis(torch.randn(2, 64, generator=generator))
    h = torch.randn(8, 32, 64, generator=generator, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        linalg.remove_component(h, V, 0.5, weights=torch.ones(8, 32, 1))
    assert kept
    assert max(kept) < h.numel() / 10


def test_half_precision_is_projected_in_float32(generator):
    V = linalg.orthonormal_basis(torch.randn(1, 512, generator=generator))
    h = (torch.randn(64, 512, generator=generator) + 20 * V).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        left = linalg.project_out(h, V)
    assert left.dtype == torch.bfloat16
    component = (h.float() @ V.T).abs().mean()
    assert ((left.float() @ V.T).abs().mean() / component) < 1e-3
    assert (linalg.project_out(h.float(), V) @ V.T).abs().max() < 1e-5 * component * 10


def test_add_vector_and_square_sum(generator):
    h = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    v = torch.randn(4, generator=generator)
    on = torch.tensor([[1, 0, 1], [0, 0, 1]]).bool().unsqueeze(-1)
    torch.testing.assert_close(linalg.add_vector(h, v), h + v)
    torch.testing.assert_close(linalg.add_vector(h, v, on), h + on * v)
    assert linalg.add_vector(h.bfloat16(), v).dtype == torch.bfloat16
    torch.testing.assert_close(linalg.square_sum(h), (h * h).sum())


def test_principal_angles(generator):
    axes = torch.eye(4)
    for angle in (0.0, 1e-6, 0.3, torch.pi / 2):
        turned = torch.stack(
            [axes[0], torch.cos(torch.tensor(angle)) * axes[1] + torch.sin(torch.tensor(angle)) * axes[2]]
        )
        angles = linalg.principal_angles(axes[:2], turned)
        torch.testing.assert_close(angles, torch.tensor([0.0, angle], dtype=torch.float64), atol=1e-7, rtol=0)
    assert linalg.principal_angles(
        torch.randn(2, 9, generator=generator), torch.randn(5, 9, generator=generator)
    ).shape == (2,)


def test_what_is_computed_in_float64_is_computed_on_the_cpu():
    """Apple's MPS has no float64."""
    from tropism.adapters.factors import LoraFactors
    from without_float64 import on_mps

    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TypeError, match="float64"):
        on_mps(rows).double()
    assert torch.equal(linalg.orthonormal_basis(on_mps(rows)), linalg.orthonormal_basis(rows))
    angles = linalg.principal_angles(on_mps(rows[:2]), on_mps(rows[1:]))
    assert torch.equal(angles, linalg.principal_angles(rows[:2], rows[1:]))
    factors = LoraFactors(on_mps(rows), on_mps(rows.T.contiguous()), 2.0)
    assert factors.norm() == LoraFactors(rows, rows.T.contiguous(), 2.0).norm()
