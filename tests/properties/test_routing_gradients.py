"""Theorems of gradient routing: one mixed pass gives every adapter the gradient of the rows that may update it."""

import peft
import pytest
import torch

import routing_oracle as oracle
import tiny
from tropism.interventions.routing import GradientRouting

ROUTE = torch.tensor([1, 0, 2, 1, 2, 0])


def routed(model, batch, guard=None, **columns):
    oracle.zero(model)
    with (guard or GradientRouting()).attach(model):
        oracle.token_losses(model, batch, **columns).sum().backward()
    found = oracle.gradients(model)
    oracle.zero(model)
    return found


def checkpointing(model, on):
    if on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_rows_equal_the_row_by_row_reference(checkpointed, live):
    model, batch = oracle.model(), tiny.batch(rows=6)
    expected = oracle.row_by_row(model, batch, ROUTE, forget_live_on_retain=live)
    checkpointing(model, checkpointed)
    found = routed(model, batch, GradientRouting(forget_live_on_retain=live), route=ROUTE)
    oracle.assert_close(found, expected)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("semantics", ["parameters", "path"])
def test_soft_position_weights_equal_the_reference(semantics, checkpointed):
    model, batch = oracle.model(), tiny.batch(rows=4)
    weights = torch.rand(4, 9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = oracle.by_position(model, batch, weights, path=semantics == "path")
    checkpointing(model, checkpointed)
    found = routed(model, batch, GradientRouting(semantics=semantics), route_weights=weights)
    oracle.assert_close(found, expected)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_token_routes_equal_the_reference(checkpointed):
    model, batch = oracle.model(), tiny.batch(rows=4)
    route = torch.randint(0, 3, (4, 9), generator=torch.Generator().manual_seed(2))
    weights = torch.stack([route != 1, route != 2], dim=-1).double()
    expected = oracle.by_position(model, batch, weights)
    checkpointing(model, checkpointed)
    found = routed(model, batch, GradientRouting(forget_live_on_retain=True), route=route)
    oracle.assert_close(found, expected)


def test_a_row_route_is_a_token_route_that_is_the_same_at_every_token():
    model, batch = oracle.model(), tiny.batch(rows=6)
    by_row = routed(model, batch, route=ROUTE)
    by_token = routed(model, batch, route=ROUTE[:, None].expand(6, 9).contiguous())
    oracle.assert_close(by_token, by_row)


def test_signed_weights_negate_the_gradient():
    model, batch = oracle.model(), tiny.batch(rows=2)
    weights = torch.ones(2, 9, 2, dtype=torch.float64)
    plus = routed(model, batch, route_weights=weights)
    minus = routed(model, batch, GradientRouting(signed=True), route_weights=-weights)
    oracle.assert_close(minus, {name: -gradient for name, gradient in plus.items()})


@pytest.mark.parametrize("which", [1, 2])
def test_a_row_gives_exactly_zero_to_the_other_adapter(which):
    model, batch = oracle.model(dtype=torch.float32), tiny.batch(rows=3)
    found = routed(model, batch, route=torch.full((3,), which))
    other, own = ("retain", "forget") if which == 1 else ("forget", "retain")
    assert all((g == 0).all() for name, g in found.items() if f".{other}." in name)
    assert all((g != 0).any() for name, g in found.items() if f".{own}." in name)


@pytest.mark.parametrize("semantics", ["parameters", "path"])
def test_all_unlabelled_equals_plain_training_and_the_forward_pass_is_bit_identical(semantics):
    model, batch = oracle.model(dtype=torch.float32), tiny.batch(rows=3)
    loss = oracle.token_losses(model, batch).sum()
    loss.backward()
    plain = oracle.gradients(model)
    oracle.zero(model)
    with GradientRouting(semantics=semantics).attach(model):
        guarded = oracle.token_losses(model, batch, route=torch.zeros(3, dtype=torch.int64)).sum()
        guarded.backward()
    assert torch.equal(loss, guarded)
    oracle.assert_close(oracle.gradients(model), plain, 1e-6)


def test_forget_rows_leave_the_forward_pass_bit_identical():
    model, batch = oracle.model(dtype=torch.bfloat16), tiny.batch(rows=3)
    plain = oracle.token_losses(model, batch)
    with GradientRouting().attach(model):
        assert torch.equal(plain, oracle.token_losses(model, batch, route=torch.tensor([1, 0, 1])))


def test_retain_rows_run_without_the_forget_adapter():
    model, batch = oracle.model(), tiny.batch(rows=3)
    with oracle.scaled(model, "forget", 0.0):
        without = oracle.token_losses(model, batch)
    plain = oracle.token_losses(model, batch)
    with GradientRouting().attach(model):
        found = oracle.token_losses(model, batch, route=torch.tensor([2, 0, 1]))
    torch.testing.assert_close(found, torch.stack([without[0], plain[1], plain[2]]), rtol=0, atol=1e-12)
    assert not torch.allclose(without[0], plain[0])


def test_path_cuts_the_gradient_to_lower_layers_and_parameters_does_not():
    model, batch = oracle.model(), tiny.batch(rows=2)
    route = torch.tensor([1, 1])
    expected = {}
    for semantics in ("parameters", "path"):
        weights = torch.stack([route != 1, route != 2], dim=-1).double()[:, None].expand(2, 9, 2)
        expected[semantics] = oracle.by_position(model, batch, weights, path=semantics == "path")
        oracle.assert_close(
            routed(model, batch, GradientRouting(semantics=semantics), route=route), expected[semantics]
        )
    lowest = next(name for name in expected["path"] if "layers.0" in name and ".forget." in name)
    assert not torch.allclose(expected["path"][lowest], expected["parameters"][lowest])


@pytest.mark.parametrize("checkpointed", [False, True])
def test_accumulated_halves_equal_the_whole_batch(checkpointed):
    model, batch = checkpointing(oracle.model(), checkpointed), tiny.batch(rows=6)
    whole = routed(model, batch, route=ROUTE)
    with GradientRouting().attach(model):
        for half in (slice(0, 3), slice(3, 6)):
            oracle.token_losses(model, {k: v[half] for k, v in batch.items()}, route=ROUTE[half]).sum().backward()
    oracle.assert_close(oracle.gradients(model), whole)


def test_checkpointing_recomputes_each_pass_with_its_own_routes():
    """Two passes, then a pass without gradients, then both backward passes: as DPO and a reference model do it."""
    model, batch = oracle.model(), tiny.batch(rows=6)
    expected = oracle.row_by_row(model, batch, ROUTE)
    checkpointing(model, True)
    with GradientRouting().attach(model):
        loss = 0
        for half in (slice(0, 3), slice(3, 6)):
            loss = loss + oracle.token_losses(model, {k: v[half] for k, v in batch.items()}, route=ROUTE[half]).sum()
        with torch.no_grad():
            model(input_ids=batch["input_ids"])
        loss.backward()
    oracle.assert_close(oracle.gradients(model), expected)


def test_dropout_is_drawn_as_without_the_guard():
    model, batch = oracle.model(dropout=0.3), tiny.batch(rows=2)
    found = []
    for guarded in (False, True):
        oracle.zero(model)
        torch.manual_seed(3)
        if guarded:
            with GradientRouting().attach(model):
                oracle.token_losses(model, batch, route=torch.tensor([0, 0])).sum().backward()
        else:
            oracle.token_losses(model, batch).sum().backward()
        found.append(oracle.gradients(model))
    oracle.assert_close(found[1], found[0])


def test_autocast_gives_the_gradients_of_plain_autocast_where_nothing_is_labelled():
    model, batch = oracle.model(dtype=torch.float32), tiny.batch(rows=3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = oracle.token_losses(model, batch).sum()
    loss.backward()
    plain = oracle.gradients(model)
    oracle.zero(model)
    with GradientRouting().attach(model):
        with torch.autocast("cpu", torch.bfloat16):
            guarded = oracle.token_losses(model, batch, route=torch.tensor([0, 0, 0])).sum()
        guarded.backward()
    assert torch.equal(loss, guarded)
    for name, gradient in oracle.gradients(model).items():
        assert gradient.dtype == torch.float32
        assert (gradient - plain[name]).norm() <= 1e-2 * plain[name].norm(), name


def test_autocast_routes_rows():
    model, batch = oracle.model(dtype=torch.float32), tiny.batch(rows=3)
    with GradientRouting().attach(model), torch.autocast("cpu", torch.bfloat16):
        oracle.token_losses(model, batch, route=torch.tensor([1, 1, 1])).sum().backward()
    assert all((g == 0).all() for name, g in oracle.gradients(model).items() if ".retain." in name)
    assert all((g != 0).any() for name, g in oracle.gradients(model).items() if ".forget." in name)


def test_a_biased_adapter_is_routed_and_silenced_with_its_bias():
    model, batch = oracle.model(), tiny.batch(rows=6)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            for linear in module.lora_B.values():
                linear.bias = torch.nn.Parameter(torch.full((linear.out_features,), 0.05, dtype=torch.float64))
    expected = oracle.row_by_row(model, batch, ROUTE)
    assert any(name.endswith("lora_B.forget.bias") for name in expected)
    oracle.assert_close(routed(model, batch, route=ROUTE), expected)
