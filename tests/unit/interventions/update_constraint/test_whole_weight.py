"""Without an adapter: the weight itself is held to `⟨U, W⟩ = ⟨U, W₀⟩`, as a naive projection in float64 holds it."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
import tropism as tp
from tropism.errors import AttachError
from tropism.interventions.update_constraint.step import constraint_of

MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    torch.manual_seed(3)
    model = get_peft_model(
        tiny.model(), LoraConfig(r=2, target_modules=["layers.0.self_attn.q_proj", "layers.2.mlp.down_proj"])
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(str(folder))
    return folder


def whole(dtype=torch.float32):
    return tiny.model().to(dtype).requires_grad_(True)


def train(model, optimizer, steps):
    for seed in range(steps):
        optimizer.zero_grad()
        model(**tiny.batch(seed=seed)).loss.backward()
        optimizer.step()


def test_one_step_of_sgd_is_the_naive_projection_in_float64(adapter):
    directions = tp.parameter_directions(adapter)
    constrained, naive = whole(torch.float64), whole(torch.float64)
    optimizer = torch.optim.SGD(constrained.parameters(), lr=0.1)
    with tp.UpdateConstraint(directions).attach(constrained, optimizer=optimizer):
        train(constrained, optimizer, 1)
    naive(**tiny.batch(seed=0)).loss.backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in naive.named_parameters()}
    for module in MODULES:
        factors = directions.factors[module]
        U = (factors.B.double() * directions.coefficients(module)[0].double()) @ factors.A.double()
        U = U / U.norm()
        g = naive.get_parameter(f"{module}.weight").grad
        assert (U * g).sum().abs() > 1e-6  # there is something to take away
        expected[f"{module}.weight"] += 0.1 * U * (U * g).sum()
    for name, parameter in constrained.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), expected[name], rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("per", ["weight", "model"])
def test_under_adam_with_weight_decay_nothing_leaks(adapter, per):
    directions, model = tp.parameter_directions(adapter), whole()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    with tp.UpdateConstraint(directions, per=per).attach(model, optimizer=optimizer) as attachment:
        train(model, optimizer, 6)
        last = constraint_of(attachment).ledger.entries[-1]
    assert last.leak_before > 1e-3
    assert last.leak_cumulative < 1e-5


def test_a_space_of_factors_and_a_frozen_weight_are_refused(adapter):
    directions, model = tp.parameter_directions(adapter), whole()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        AttachError, match="constrains the factors of an adapter, found weights that are trained themselves"
    ):
        tp.UpdateConstraint(directions, space="parameter").attach(model, optimizer=optimizer).__enter__()
    model.get_parameter(f"{MODULES[0]}.weight").requires_grad_(False)
    with pytest.raises(AttachError, match=rf"or a linear layer that is trained itself; unmatched are {MODULES[0]}"):
        tp.UpdateConstraint(directions).attach(model, optimizer=optimizer).__enter__()
