"""Pressure in weight space, against per-chat gradients that autograd materialises."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
import tropism as tp
from gradient_cases import chats
from tropism.directions.parameter import ParameterDirections, parameter_directions
from tropism.errors import DataError, DirectionsMismatch
from tropism.probes.parameter_pressure import parameter_pressure


@pytest.fixture
def adapted():
    """A tiny model with a LoRA adapter that has moved, in float64."""
    model = get_peft_model(
        tiny.model(dtype=torch.float64), LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"])
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.double()


@pytest.fixture
def directions(adapted):
    """One direction over every adapted weight, from a random adapter of the same shapes."""
    return parameter_directions(adapted).random_like(seed=1)


def materialised(directions, name):
    f, C = directions.factors[name], directions.coefficients(name)
    return (f.B.double() * C[0]) @ f.A.double()


def chat_loss(model, tokenizer, chat):
    row = tp.render(tokenizer, chat)
    ids = torch.tensor([row.input_ids])
    return model(input_ids=ids, labels=torch.where(torch.tensor([row.response_mask]), ids, -100)).loss


def test_adapter_space_equals_the_gradients_of_A_and_B(adapted, tokenizer, directions):
    table = parameter_pressure(adapted, tokenizer, chats(), directions, batch_size=4)
    assert list(table.columns) == ["chat", "direction", "pressure", "cosine", "gradient_norm", "loss"]
    modules = dict(adapted.get_base_model().named_modules())
    adapted.eval()
    for i, chat in enumerate(chats()):
        adapted.zero_grad()
        chat_loss(adapted, tokenizer, chat).backward()
        inner = tangent = square = 0.0
        for name in directions.weights:
            layer, U = modules[name], materialised(directions, name)
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            grads = A.grad, B.grad
            A, B = A.detach(), B.detach()
            s = layer.scaling["default"]
            for gradient, along in zip(grads, (s * B.T @ U, s * U @ A.T), strict=True):
                inner += float((gradient * along).sum())
                tangent += float(along.square().sum())
                square += float(gradient.square().sum())
        row = table.iloc[i]
        assert row.chat == i
        assert row.pressure == pytest.approx(-inner / tangent**0.5, rel=1e-4)
        assert row.gradient_norm == pytest.approx(square**0.5, rel=1e-4)
        assert row.cosine == pytest.approx(inner / tangent**0.5 / square**0.5, rel=1e-4)


def test_weight_space_equals_the_gradient_of_the_weight(tokenizer, directions):
    model = tiny.model(dtype=torch.float64)
    table = parameter_pressure(model, tokenizer, chats(), directions, batch_size=8, space="weight")
    weights = dict(model.named_parameters())
    model.eval()
    for i, chat in enumerate(chats()):
        model.zero_grad()
        chat_loss(model, tokenizer, chat).backward()
        inner = square = 0.0
        for name in directions.weights:
            gradient = weights[name + ".weight"].grad
            inner += float((gradient * materialised(directions, name)).sum())
            square += float(gradient.square().sum())
        assert table.pressure[i] == pytest.approx(-inner / float(directions.norms()[0]), rel=1e-4)
        assert table.gradient_norm[i] == pytest.approx(square**0.5, rel=1e-4)


def test_an_sgd_step_moves_the_adapter_along_the_direction_as_pressure_says(adapted, tokenizer, directions):
    table = parameter_pressure(adapted, tokenizer, chats(), directions)
    modules = dict(adapted.get_base_model().named_modules())
    adapted.eval()

    def phi():
        total = 0.0
        for name in directions.weights:
            layer = modules[name]
            change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
            total += float((change.detach() * materialised(directions, name)).sum())
        return total

    trainable = [p for p in adapted.parameters() if p.requires_grad]
    for i, chat in enumerate(chats()):
        adapted.zero_grad()
        chat_loss(adapted, tokenizer, chat).backward()
        before = phi()
        with torch.no_grad():
            for p in trainable:
                p -= 1e-4 * p.grad
        moved = phi() - before
        with torch.no_grad():
            for p in trainable:
                p += 1e-4 * p.grad
        assert (moved > 0) == (table.pressure[i] > 0)


def test_batch_size_changes_nothing_and_the_model_is_left_as_it_was(adapted, tokenizer, directions):
    flags = [p.requires_grad for p in adapted.parameters()]
    one = parameter_pressure(adapted, tokenizer, chats(), directions, batch_size=1)
    eight = parameter_pressure(adapted, tokenizer, chats(), directions, batch_size=8)
    assert one.pressure.tolist() == pytest.approx(eight.pressure.tolist(), rel=1e-4)
    assert one.gradient_norm.tolist() == pytest.approx(eight.gradient_norm.tolist(), rel=1e-4)
    assert [p.requires_grad for p in adapted.parameters()] == flags
    assert all(p.grad is None for p in adapted.parameters())


def test_what_does_not_fit_is_refused(adapted, tokenizer, directions):
    plain = tiny.model()
    with pytest.raises(DirectionsMismatch, match="needs one live LoRA adapter at"):
        parameter_pressure(plain, tokenizer, chats(), directions)
    elsewhere = ParameterDirections.of_factors({"model.layers.9.mlp.down_proj": (torch.ones(32, 1), torch.ones(1, 64))})
    with pytest.raises(DirectionsMismatch, match=r"the model has no model\.layers\.9\.mlp\.down_proj"):
        parameter_pressure(adapted, tokenizer, chats(), elsewhere)
    with pytest.raises(DataError, match="chat 0 has no response"):
        parameter_pressure(adapted, tokenizer, [[{"role": "user", "content": "hi"}]], directions)
