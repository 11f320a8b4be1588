"""Gradient routing as a guard: what it refuses, what it says, and that an adapter without rows does not move."""

import re

import jaxtyping
import peft
import pytest
import torch

import routing_oracle as oracle
import tiny
import tropism as tp
from tropism.errors import AttachError, DataError, GuardNotInForce, ModelError
from tropism.interventions.routing import GradientRouting
from tropism.names import ROUTE_IDS as ROUTES


def step(model, optimizer, route, rows=3, seed=0, **columns):
    optimizer.zero_grad()
    columns = columns or {"route": torch.tensor(route)}
    model(**tiny.batch(rows=rows, seed=seed), **columns).loss.backward()
    optimizer.step()


def values(model, adapter):
    return {name: p.detach().clone() for name, p in oracle.parameters(model, adapter).items()}


def moved(model, adapter, before):
    return [name for name, p in oracle.parameters(model, adapter).items() if not torch.equal(p, before[name])]


# --- the column


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "must carry the column route (or route_weights), found neither"),
        ({"route": torch.zeros(2, dtype=torch.int64)}, "one id a row [3] or a token [3, 9], found shape [2]"),
        ({"route": torch.zeros(3, 8, dtype=torch.int64)}, "found shape [3, 8]"),
        ({"route": torch.tensor([0, 1, 3])}, "ids 0 unlabelled, 1 forget, 2 retain, found 3"),
        ({"route": torch.tensor([0, -1, 1])}, "found -1"),
        ({"route": torch.zeros(3)}, "integer tensor of ids, found torch.float32"),
        ({"route": [0, 0, 0]}, "found list"),
        ({"route_weights": torch.ones(3, 9)}, "[B, T, 2] = [3, 9, 2] (retain, forget), found shape [3, 9]"),
        ({"route_weights": torch.ones(3, 9, 2, dtype=torch.int64)}, "floating-point tensor, found torch.int64"),
        ({"route_weights": torch.full((3, 9, 2), 1.5)}, "must lie in [0, 1], found values from 1.5 to 1.5"),
        ({"route_weights": torch.full((3, 9, 2), -0.5)}, "GradientRouting(signed=True) allows them"),
        ({"route_weights": torch.full((3, 9, 2), float("nan"))}, "must be finite"),
        (
            {"route": torch.tensor([0, 0, 0]), "route_weights": torch.ones(3, 9, 2)},
            "route or route_weights, found both",
        ),
    ],
)
def test_a_bad_column_is_an_error_that_says_so(columns, says):
    model = oracle.model(dtype=torch.float32)
    with pytest.raises(DataError, match=re.escape(says)), GradientRouting().attach(model):
        model(**tiny.batch(), **columns)


def test_signed_weights_are_allowed_when_asked_for_but_must_be_finite():
    model = oracle.model(dtype=torch.float32)
    with GradientRouting(signed=True).attach(model):
        model(**tiny.batch(), route_weights=torch.full((3, 9, 2), -1.5)).loss.backward()
        with pytest.raises(DataError, match="must be finite"):
            model(**tiny.batch(), route_weights=torch.full((3, 9, 2), float("inf")))


def test_evaluation_without_gradients_needs_no_column():
    model = oracle.model(dtype=torch.float32)
    batch = tiny.batch()
    with torch.no_grad():
        plain = model(**batch).logits
        with GradientRouting().attach(model):
            assert torch.equal(model(**batch).logits, plain)


def test_the_guard_names_its_columns():
    assert GradientRouting().batch_keys == {"route", "route_weights"}
    assert GradientRouting().place == "parameter gradients"
    assert ROUTES == {"unlabelled": 0, "forget": 1, "retain": 2}
    assert tp.GradientRouting is GradientRouting


# --- the model


def test_a_model_without_the_two_adapters_is_refused():
    with pytest.raises(AttachError, match="LoRA adapter 'retain', found no adapter; make both with"):
        GradientRouting().attach(tiny.model()).__enter__()
    one = peft.get_peft_model(tiny.model(), peft.LoraConfig(target_modules=["q_proj"]), adapter_name="retain")
    with pytest.raises(AttachError, match="LoRA adapter 'forget', found 'retain'"):
        GradientRouting().attach(one).__enter__()


def test_an_idle_a_frozen_and_a_disabled_adapter_are_refused():
    model = oracle.model()
    model.set_adapter("retain")
    with pytest.raises(AttachError, match="adapter 'forget' must be active, found active \\['retain'\\]"):
        GradientRouting().attach(model).__enter__()
    model = oracle.model()
    for p in oracle.parameters(model, "retain").values():
        p.requires_grad_(False)
    with pytest.raises(AttachError, match="'retain' must be trainable"):
        GradientRouting().attach(model).__enter__()
    model = oracle.model()
    with model.disable_adapter(), pytest.raises(AttachError, match="merged or disabled"):
        GradientRouting().attach(model).__enter__()


def test_other_trainable_parameters_are_refused_since_they_would_learn_from_every_row():
    model = oracle.model()
    model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(AttachError, match=r"found 1 other trainable parameters \(base_model.*norm.weight"):
        GradientRouting().attach(model).__enter__()


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
        peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
    ],
)
def test_what_is_not_plain_lora_on_a_linear_is_refused(config):
    model = oracle.model(dtype=torch.float32, forget=config)
    with pytest.raises(
        AttachError,
        match="GradientRouting: the adapter has (DoRA|LoRA on an embedding) at model..*, and cannot be trained under",
    ):
        GradientRouting().attach(model).__enter__()


def test_a_forget_adapter_on_modules_that_retain_lacks_is_allowed_and_said():
    model = oracle.model(dtype=torch.float32, forget=peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    with (
        pytest.warns(UserWarning, match=r"'forget' adapts 2 modules that 'retain' lacks \(.*o_proj"),
        GradientRouting().attach(model),
    ):
        model(**tiny.batch(), route=torch.tensor([1, 1, 1])).loss.backward()
    assert all((p.grad != 0).any() for n, p in oracle.parameters(model, "forget").items() if "o_proj" in n)


@pytest.fixture
def unchecked():
    """The user's situation: no type checker between them and our message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_options_are_checked():
    with pytest.raises(AttachError, match="'parameters' or 'path', found 'both'"):
        GradientRouting(semantics="both")
    with pytest.raises(AttachError, match="must name two adapters, found 'a' twice"):
        GradientRouting(retain="a", forget="a")


def test_a_linear_that_does_not_see_the_batch_rows_is_refused():
    model = oracle.model(dtype=torch.float32)
    linear = next(m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer))
    with GradientRouting().attach(model):
        model(**tiny.batch(), route=torch.tensor([0, 1, 2]))
        with pytest.raises(ModelError, match=r"B=3 and T=9, found \[5, 4\]"):
            linear(torch.zeros(5, 32))
        assert linear(torch.zeros(27, 32)).shape == (27, 32)


def test_a_bypassed_adapter_is_not_in_force():
    model = oracle.model(dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.forward = module.base_layer.forward  # as a fused kernel would
    with (
        pytest.raises(
            GuardNotInForce,
            match=r"routing of 'retain' in model.layers.\*.self_attn.q_proj.* did not fire in forward pass 1",
        ),
        GradientRouting().attach(model),
    ):
        model(**tiny.batch(), route=torch.tensor([0, 1, 2]))


def test_hooks_are_gone_afterwards_also_after_an_exception():
    model, batch = oracle.model(), tiny.batch()
    expected = oracle.token_losses(model, batch)
    with pytest.raises(KeyError), GradientRouting().attach(model):
        oracle.token_losses(model, batch, route=torch.tensor([2, 2, 2]))
        raise KeyError
    assert torch.equal(oracle.token_losses(model, batch), expected)
    expected.sum().backward()
    assert all((p.grad != 0).any() for p in oracle.parameters(model, "retain").values())
    assert not any(m._forward_hooks for m in model.modules())


# --- the optimiser


def make(kind, model):
    trainable = [p for p in model.parameters() if p.requires_grad]
    if kind == "sgd":
        return torch.optim.SGD(trainable, lr=0.1, momentum=0.9, weight_decay=0.1)
    return torch.optim.AdamW(trainable, lr=0.01, weight_decay=0.1, foreach=kind == "foreach")


@pytest.mark.parametrize("kind", ["adamw", "foreach", "sgd"])
@pytest.mark.parametrize(("route", "idle", "busy"), [([1, 1, 1], "retain", "forget"), ([2, 2, 2], "forget", "retain")])
def test_an_adapter_without_rows_does_not_move_although_it_has_momentum(kind, route, idle, busy):
    model = oracle.model(dtype=torch.float32)
    optimizer = make(kind, model)
    with GradientRouting().attach(model) as attachment:
        for seed in range(3):
            step(model, optimizer, [0, 0, 0], seed=seed)
        before = {name: values(model, name) for name in (idle, busy)}
        attachment.readings()
        step(model, optimizer, route, seed=3)
        assert moved(model, idle, before[idle]) == []
        assert len(moved(model, busy, before[busy])) == len(before[busy])
        readings = attachment.readings()
        assert readings[f"guard/routing/steps_without_{idle}"] == 1
        assert readings[f"guard/routing/share_{busy}"] == 1
        step(model, optimizer, [0, 0, 0], seed=4)
        assert moved(model, idle, before[idle]) != []
        assert attachment.readings() == {
            "guard/routing/share_forget": 0,
            "guard/routing/share_retain": 0,
            "guard/routing/share_unlabelled": 1,
        }


def test_under_accumulation_one_row_in_any_micro_batch_lets_the_adapter_move():
    model = oracle.model(dtype=torch.float32)
    optimizer = make("adamw", model)
    with GradientRouting().attach(model):
        before = values(model, "retain")
        for route in ([1, 1, 1], [0, 1, 1], [1, 1, 1]):
            model(**tiny.batch(), route=torch.tensor(route)).loss.backward()
        optimizer.step()
        assert moved(model, "retain", before) != []
        optimizer.zero_grad()
        before = values(model, "retain")
        for _ in range(2):
            model(**tiny.batch(), route=torch.tensor([1, 1, 1])).loss.backward()
        optimizer.step()
        assert moved(model, "retain", before) == []


def test_a_pass_without_a_backward_pass_does_not_count():
    model = oracle.model(dtype=torch.float32)
    optimizer = make("adamw", model)
    with GradientRouting().attach(model):
        step(model, optimizer, [0, 0, 0])
        before = values(model, "retain")
        model(**tiny.batch(), route=torch.tensor([0, 0, 0]))
        step(model, optimizer, [1, 1, 1])
        assert moved(model, "retain", before) == []


def test_a_skipped_step_does_not_carry_over():
    model = oracle.model(dtype=torch.float32)
    optimizer = make("adamw", model)
    with GradientRouting().attach(model):
        step(model, optimizer, [0, 0, 0])
        before = values(model, "retain")
        model(**tiny.batch(), route=torch.tensor([0, 0, 0])).loss.backward()
        optimizer.zero_grad()  # as GradScaler leaves it where gradients overflowed
        step(model, optimizer, [1, 1, 1])
        assert moved(model, "retain", before) == []


def test_gradients_that_are_zeroed_and_not_dropped_do_not_carry_over_either():
    model = oracle.model(dtype=torch.float32)
    optimizer = make("adamw", model)
    with GradientRouting().attach(model):
        step(model, optimizer, [0, 0, 0])
        optimizer.zero_grad(set_to_none=False)
        before = values(model, "retain")
        model(**tiny.batch(), route=torch.tensor([1, 1, 1])).loss.backward()
        optimizer.step()
        assert moved(model, "retain", before) == []


def test_each_adapter_may_have_an_optimiser_of_its_own():
    model = oracle.model(dtype=torch.float32)
    optimizers = {
        name: torch.optim.AdamW(oracle.parameters(model, name).values(), lr=0.01) for name in ("retain", "forget")
    }
    with GradientRouting().attach(model):
        for route, still in (([0, 0, 0], []), ([1, 1, 1], ["retain"]), ([2, 2, 2], ["forget"])):
            before = {name: values(model, name) for name in optimizers}
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            model(**tiny.batch(), route=torch.tensor(route)).loss.backward()
            for optimizer in optimizers.values():
                optimizer.step()
            assert [name for name in optimizers if moved(model, name, before[name]) == []] == still


def test_another_models_optimiser_is_left_alone():
    model, other = oracle.model(dtype=torch.float32), torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with GradientRouting().attach(model):
        model(**tiny.batch(), route=torch.tensor([1, 1, 1])).loss.backward()
        other(torch.ones(1, 2)).sum().backward()
        before = other.weight.detach().clone()
        optimizer.step()
        assert not torch.equal(other.weight, before)
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_it_works_inside_accelerates_optimiser():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = oracle.model(dtype=torch.float32)
    prepared, optimizer = accelerator.prepare(model, make("adamw", model))
    with GradientRouting().attach(model):
        step(prepared, optimizer, [0, 0, 0])
        before = values(model, "retain")
        step(prepared, optimizer, [1, 1, 1])
        assert moved(model, "retain", before) == []


def test_soft_zero_weights_count_as_no_row():
    model = oracle.model(dtype=torch.float32)
    optimizer = make("adamw", model)
    weights = torch.zeros(3, 9, 2)
    weights[..., 1] = 0.5
    with GradientRouting().attach(model) as attachment:
        step(model, optimizer, [0, 0, 0])
        before = values(model, "retain")
        step(model, optimizer, None, route_weights=weights)
        assert moved(model, "retain", before) == []
        assert attachment.readings()["guard/routing/steps_without_retain"] == 1
