"""The ledger against dense oracles, and what it reports to a trainer's log."""

import pytest
import torch
from torch.optim import SGD, AdamW

import tropism as tp
from naive_constraint import (
    delta_weights,
    dense_direction,
    dense_directions,
    factors,
    layers,
    lora,
    naive_leak,
    naive_subspace_leak,
    raw_direction,
    train,
    trainable,
)
from tropism.errors import LeakExceeded
from tropism.interventions.update_constraint import Entry, Ledger, constraint_of

ENTRY = Entry(1, leak_before=0.2, leak_after=1e-9, leak_cumulative=1e-9, share_removed=0.1, cosine=-0.3)


def _first():
    model = lora(seed=1)
    train(model, AdamW(trainable(model), lr=1e-2), steps=15, seed=9)
    return model


@pytest.fixture(scope="module")
def u():
    return tp.parameter_directions(_first())


@pytest.mark.parametrize("steps_before", [0, 5])
def test_leaks_equal_the_dense_oracle(u, steps_before):
    """Of the published rule, whose leaks are large: per step and cumulative, also from a trained start."""
    model = lora(seed=2)
    optimizer = AdamW(trainable(model), lr=1e-2, weight_decay=0.1)
    train(model, optimizer, steps_before, seed=3)
    start = previous = delta_weights(model)
    with tp.UpdateConstraint(u, when="gradient").attach(model, optimizer=optimizer) as attachment:
        for step in range(4):
            train(model, optimizer, steps=1, seed=9, first=step)
            now = delta_weights(model)
            entry = constraint_of(attachment).ledger.entries[-1]
            since = lambda then, now=now: {name: now[name] - then[name] for name in now}  # noqa: E731
            assert entry.leak_before == pytest.approx(naive_leak(since(previous), dense_direction(u)), rel=1e-4)
            assert entry.leak_after == entry.leak_before
            assert entry.leak_cumulative == pytest.approx(naive_leak(since(start), dense_direction(u)), rel=1e-4)
            previous = now


@pytest.mark.parametrize("per", ["weight", "model"])
@pytest.mark.parametrize("space", ["delta_weight", "parameter"])
def test_the_leak_into_a_subspace_of_oblique_directions_is_counted_once(u, per, space):
    """Two adapters that learned nearly the same: the leak is that into their span, not the sum over both."""
    model = lora(seed=1)
    train(model, AdamW(trainable(model), lr=1e-2), steps=17, seed=9)
    both = tp.parameter_directions([model, _first()])
    model = lora(seed=1)
    position = delta_weights if space == "delta_weight" else factors
    start = position(model)
    optimizer = AdamW(trainable(model), lr=1e-2)
    with tp.UpdateConstraint(both, when="gradient", per=per, space=space).attach(
        model, optimizer=optimizer
    ) as attachment:
        train(model, optimizer, steps=3, seed=9)
        entry = constraint_of(attachment).ledger.entries[-1]
    moved = {name: now - start[name] for name, now in position(model).items()}
    dense = dense_directions(both) if space == "delta_weight" else raw_direction(both, stacked=True)
    assert entry.leak_cumulative == pytest.approx(naive_subspace_leak(moved, dense, per), rel=1e-3)


@pytest.mark.parametrize("mode", ["equality", "one_sided"])
def test_share_removed_and_cosine_equal_the_dense_oracle(u, mode):
    model = lora(seed=1)
    train(model, AdamW(trainable(model), lr=1e-2), steps=3, seed=1)
    optimizer = SGD(trainable(model), lr=0.0)
    with tp.UpdateConstraint(u, mode=mode).attach(model, optimizer=optimizer) as attachment:
        train(model, SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0), steps=1, seed=2)
        U, removed, size2, along, tangent2 = dense_direction(u), 0.0, 0.0, 0.0, 0.0
        for name, module in layers(model).items():
            A, B = (f["default"].weight for f in (module.lora_A, module.lora_B))
            s = module.scaling["default"]
            t = [s * B.detach().double().T @ U[name], s * U[name] @ A.detach().double().T]
            g = [A.grad.double(), B.grad.double()]
            inner = sum(float((x * y).sum()) for x, y in zip(t, g, strict=True)) / float(U[name].norm())
            length2 = sum(float(x.square().sum()) for x in t) / float(U[name].square().sum())
            removed += (inner**2 if mode == "equality" else max(inner, 0) ** 2) / length2
            size2 += sum(float(y.square().sum()) for y in g)
            along, tangent2 = along + inner, tangent2 + length2
        optimizer.step()
        entry = constraint_of(attachment).ledger.entries[-1]
    assert entry.share_removed == pytest.approx(removed / size2, rel=1e-5)
    assert entry.cosine == pytest.approx(along / (size2 * tangent2) ** 0.5, rel=1e-5)


def test_a_step_that_moves_nothing_leaks_nothing(u):
    model = lora(seed=2)
    optimizer = SGD(trainable(model), lr=0.0)
    with tp.UpdateConstraint(u).attach(model, optimizer=optimizer) as attachment:
        train(model, optimizer, steps=2)
        entry = constraint_of(attachment).ledger.entries[-1]
    assert entry.leak_before == entry.leak_after == entry.leak_cumulative == 0.0


def test_readings_are_of_the_steps_since_the_last_call():
    ledger = Ledger(tolerance=1e-4)
    assert ledger.readings() == {}
    ledger.record(ENTRY)
    ledger.record(Entry(2, 0.1, 1e-8, 2e-9, 0.3, 0.1))
    assert ledger.readings() == {
        "guard/update_constraint/leak_before": 0.2,
        "guard/update_constraint/leak_after": 1e-8,
        "guard/update_constraint/leak_cumulative": 2e-9,
        "guard/update_constraint/share_removed": pytest.approx(0.2),
        "guard/update_constraint/cosine": pytest.approx(-0.1),
    }
    assert ledger.readings() == {}
    assert [row["step"] for row in ledger.table()] == [1, 2]


@pytest.mark.parametrize("leak", [2e-4, float("nan"), float("inf")])
def test_over_tolerance_or_not_a_number_fails(leak):
    bad = Entry(7, 0.2, 1e-9, leak, 0.1, 0.0)
    with pytest.raises(
        LeakExceeded, match=r"cumulative leak .* at step 7 is over tolerance 1e-04; the adapter is trained"
    ):
        Ledger(tolerance=1e-4, dtypes="float16").record(bad)
    Ledger(tolerance=None).record(bad)


def test_nothing_is_promised_of_the_published_rule_and_of_soft(u):
    model = lora(seed=2)
    optimizer = SGD(trainable(model), lr=1e-2)
    for options, tolerance in (
        ({}, 1e-4),
        ({"when": "gradient"}, None),
        ({"mode": "soft", "strength": 0.5}, None),
    ):
        with tp.UpdateConstraint(u, **options).attach(model, optimizer=optimizer) as attachment:
            train(model, optimizer, steps=1)
            assert constraint_of(attachment).ledger.tolerance == tolerance
