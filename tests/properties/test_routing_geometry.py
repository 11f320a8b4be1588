"""Geometry of two adapters against the materialised weights, and the null against theory."""

import math

import peft
import pytest
import torch

import routing_oracle as oracle
import tiny
from tropism.errors import AttachError
from tropism.studies.routing.geometry import Factored, lora_geometry, overlap, random_overlaps


def factors(d_out, d_in, r, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(d_out, r, generator=g, dtype=torch.float64), torch.randn(
        r, d_in, generator=g, dtype=torch.float64
    )


def delta(B, A, scale=1.0):
    return scale * B @ A


def principal_cosines(M, N, rows):
    """From the projectors onto the spaces of the materialised matrices."""
    spaces = []
    for W in (M, N):
        U, S, V = torch.linalg.svd(W)
        r = int((1e-9 * S[0] < S).sum())
        spaces.append(V[:r] if rows else U[:, :r].T)
    P, Q = (s.T @ s for s in spaces)
    squares = torch.linalg.eigvalsh(P @ Q @ P).flip(0)[: min(len(s) for s in spaces)]
    return squares.clamp(0, 1).sqrt()


@pytest.mark.parametrize("ranks", [(4, 4), (4, 2), (1, 3)])
def test_overlap_equals_that_of_the_materialised_weights(ranks):
    (B1, A1), (B2, A2) = factors(12, 9, ranks[0], 0), factors(12, 9, ranks[1], 1)
    M, N = delta(B1, A1, 2.0), delta(B2, A2, 0.5)
    found = overlap(Factored.of(B1, A1, 2.0), Factored.of(B2, A2, 0.5))
    assert found.cosine == pytest.approx(float((M * N).sum() / M.norm() / N.norm()), abs=1e-12)
    torch.testing.assert_close(found.rows, principal_cosines(M, N, rows=True), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.columns, principal_cosines(M, N, rows=False), rtol=0, atol=1e-7)
    assert Factored.of(B1, A1, 2.0).norm == pytest.approx(float(M.norm()), rel=1e-12)


def test_the_factorisation_is_the_weight_in_any_gauge():
    B, A = factors(12, 9, 3, 0)
    R = factors(3, 3, 3, 5)[0]
    for b, a in ((B, A), (B @ torch.linalg.inv(R), R @ A)):
        f = Factored.of(b, a, -1.5)
        torch.testing.assert_close(f.U @ torch.diag(f.S) @ f.V, delta(B, A, -1.5), rtol=0, atol=1e-10)


def test_an_adapter_overlaps_wholly_with_itself_and_not_at_all_with_an_orthogonal_one():
    B, A = factors(12, 9, 3, 0)
    same = overlap(Factored.of(B, A), Factored.of(-B, A))
    assert same.cosine == pytest.approx(-1)
    torch.testing.assert_close(same.rows, torch.ones(3, dtype=torch.float64))
    eye = torch.eye(9, dtype=torch.float64)
    apart = overlap(Factored.of(B, eye[:3]), Factored.of(B, eye[3:6]))
    assert apart.cosine == pytest.approx(0, abs=1e-12)
    assert apart.rows.max() < 1e-12
    torch.testing.assert_close(apart.columns, torch.ones(3, dtype=torch.float64))


def test_the_null_has_the_spread_that_theory_gives():
    null = random_overlaps(24, 18, (4, 2), 2000, torch.Generator().manual_seed(0))
    assert null["cosine"].mean() == pytest.approx(0, abs=4 / math.sqrt(24 * 18 * 2000))
    assert null["cosine"].std() == pytest.approx(1 / math.sqrt(24 * 18), rel=0.05)


def test_adapters_of_rank_32_in_width_1152_overlap_by_chance_as_the_literature_says():
    null = random_overlaps(1152, 1152, (32, 32), 3, torch.Generator().manual_seed(0))
    assert null["row_overlap"].mean() == pytest.approx(0.14, abs=0.01)


def test_the_table_has_one_row_a_shared_weight_beside_its_null():
    model = oracle.model()
    table = lora_geometry(model, draws=50)
    assert len(table) == 4  # q_proj and down_proj in two blocks; v_proj has no forget adapter
    assert set(table["module"]) == {"q_proj", "down_proj"}
    assert sorted(set(table["layer"])) == [0, 1]
    assert table["weight"].str.startswith("model.layers.").all()
    assert (table["rank_retain"] == 4).all()
    assert (table["rank_forget"] == 2).all()
    layer = next(m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer) and "forget" in m.lora_A)
    first = table.iloc[0]
    retain, forget = (layer.get_delta_weight(a).detach() for a in ("retain", "forget"))
    assert first["cosine"] == pytest.approx(float((retain * forget).sum() / retain.norm() / forget.norm()), abs=1e-10)
    assert first["norm_retain"] == pytest.approx(float(retain.norm()))
    assert ((table["cosine_p"] > 0.01) & (table["cosine_p"] <= 1)).all()  # random adapters look random
    assert lora_geometry(model, draws=50).equals(table)


def test_a_planted_overlap_stands_out_of_the_null():
    model = oracle.model()
    for m in model.modules():
        if isinstance(m, peft.tuners.lora.LoraLayer) and "forget" in m.lora_A:
            m.lora_A["forget"].weight.data = m.lora_A["retain"].weight.data[:2].clone()
            m.lora_B["forget"].weight.data = m.lora_B["retain"].weight.data[:, :2].clone()
    table = lora_geometry(model, draws=99)
    for key in ("cosine", "row_overlap", "column_overlap"):
        assert (table[f"{key}_p"] == 0.01).all()
        assert (table[key] > table[f"{key}_high"]).all()


def test_a_zero_adapter_has_no_geometry():
    model = oracle.model()
    for name, p in oracle.parameters(model, "forget").items():
        if "lora_B" in name:
            torch.nn.init.zeros_(p)
    table = lora_geometry(model, draws=10)
    assert (table["rank_forget"] == 0).all()
    assert table[["cosine", "row_overlap", "column_overlap_null", "cosine_p"]].isna().all().all()


def test_two_adapters_are_needed():
    with pytest.raises(AttachError, match="found adapters none"):
        lora_geometry(tiny.model())
