"""Guards on a CUDA device: the same gradients as the oracle's there, directions that follow the model, exact constraint.

Skipped without CUDA. `TROPISM_GPU_TESTS_ON=cpu` runs the same file on the CPU, to check the tests themselves.
"""

import os

import pytest
import torch
from torch.optim import AdamW

import routing_oracle as oracle
import tiny
import tropism as tp
from hand_edits import ProjectedBackward, assert_same, differ, edited_blocks, gradients, projector
from naive_constraint import delta_weights, dense_direction, lora, naive_leak, trainable

DEVICE = os.environ.get("TROPISM_GPU_TESTS_ON", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]
SITE = tp.Site(1)


def on_device(batch):
    return {key: value.to(DEVICE) for key, value in batch.items()}


@pytest.fixture
def model():
    return tiny.model().to(DEVICE)


@pytest.fixture
def directions():
    return tp.Directions({SITE: torch.randn(3, 32, generator=torch.Generator().manual_seed(0))})


def test_ablation_equals_the_hidden_states_edited_by_hand(model, directions):
    batch, P = on_device(tiny.batch()), projector(directions, SITE).to(DEVICE)
    with edited_blocks(model, {1: lambda h: h - h @ P.to(h)}):
        _, expected = gradients(model, batch)
    with tp.Ablation(directions).attach(model):
        _, found = gradients(model, batch)
    assert_same(expected, found, 1e-4)


def test_gradient_projection_equals_the_gradient_edited_by_hand(model, directions):
    batch, P = on_device(tiny.batch()), projector(directions, SITE).to(DEVICE)
    _, unguarded = gradients(model, batch)
    with edited_blocks(model, {1: lambda h: ProjectedBackward.apply(h, P, 1.0)}):
        _, expected = gradients(model, batch)
    with tp.GradientProjection(directions).attach(model):
        _, found = gradients(model, batch)
    assert_same(expected, found, 1e-4)
    assert differ(unguarded, found) > 1e-2


def test_an_ablated_stream_of_bfloat16_keeps_what_its_dtype_cannot_hold_and_no_more(model, directions):
    model = model.to(torch.bfloat16)
    with tp.Ablation(directions).attach(model), torch.no_grad():
        stream = model(**on_device(tiny.batch()), output_hidden_states=True).hidden_states[2]
    assert stream.dtype is torch.bfloat16
    basis = torch.linalg.qr(directions.vectors[SITE].T.double())[0].to(DEVICE)
    left = (stream.double() @ basis).norm(dim=-1) / stream.double().norm(dim=-1)
    assert left.max() < 2**-7


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
def test_autocast_gives_the_same_gradients_up_to_its_precision(model, directions, mixed):
    batch = on_device(tiny.batch())
    with tp.GradientProjection(directions).attach(model):
        _, expected = gradients(model, batch)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=mixed):
            _, found = gradients(model, batch)
    assert_same(expected, found, 8e-2 if mixed else 1e-6)


def test_capture_streams_to_the_cpu_in_float32(model):
    with tp.capture(model, [SITE], positions="all") as captured, torch.no_grad():
        model(**on_device(tiny.batch()))
    assert captured[SITE].device.type == "cpu"
    assert captured[SITE].dtype is torch.float32


def test_routing_equals_the_row_by_row_reference():
    model = oracle.model().to(DEVICE)
    batch, route = on_device(tiny.batch(rows=4)), torch.tensor([1, 0, 2, 1], device=DEVICE)
    expected = oracle.row_by_row(model, batch, route, forget_live_on_retain=False)
    oracle.zero(model)
    with tp.GradientRouting().attach(model):
        oracle.token_losses(model, batch, route=route).sum().backward()
    oracle.assert_close(oracle.gradients(model), expected)


def test_the_update_constraint_holds_under_adamw():
    learned = lora(seed=1).to(DEVICE)
    steps(learned, 15)
    u = tp.parameter_directions(learned)
    model = lora(seed=2).to(DEVICE)
    before = delta_weights(model)
    optimizer = AdamW(trainable(model), lr=1e-2, weight_decay=0.1)
    with tp.UpdateConstraint(u).attach(model, optimizer=optimizer):
        steps(model, 8, optimizer)
    moved = {name: (after - before[name]).cpu() for name, after in delta_weights(model).items()}
    assert naive_leak(moved, {name: rows.cpu() for name, rows in dense_direction(u).items()}) < 1e-5


def steps(model, count, optimizer=None):
    optimizer = optimizer or AdamW(trainable(model), lr=1e-2)
    for seed in range(count):
        optimizer.zero_grad()
        model(**on_device(tiny.batch(seed=seed))).loss.backward()
        optimizer.step()
