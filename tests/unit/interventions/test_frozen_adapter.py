"""The frozen trait adapter: what PEFT would compute with it, in training only, and a control of the same norms."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import tiny
from tropism.adapters.factors import LoraFactors
from tropism.errors import AttachError, UsageError
from tropism.interventions.frozen_adapter import FrozenAdapter


def trained(seed=3):
    model = get_peft_model(tiny.model(), LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def test_logits_and_gradients_equal_those_of_the_adapter_itself():
    source, plain, batch = trained(), tiny.model(), tiny.batch()
    guard = FrozenAdapter.load(source)
    wanted = source(**batch)
    wanted.loss.backward()
    with guard.attach(plain):
        found = plain(**batch)
        found.loss.backward()
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.loss, wanted.loss)
    source.base_model.requires_grad_(True)
    source.zero_grad()
    source(**batch).loss.backward()
    theirs = source.get_base_model().get_input_embeddings().weight.grad
    torch.testing.assert_close(plain.get_input_embeddings().weight.grad, theirs, rtol=1e-3, atol=1e-6)


def test_absent_at_evaluation_and_after():
    plain, batch = tiny.model(), tiny.batch()
    guard = FrozenAdapter.load(trained())
    bare = plain(**batch).logits
    with guard.attach(plain):
        assert not torch.allclose(plain(**batch).logits, bare)
        assert torch.equal(plain.eval()(**batch).logits, bare)
        plain.train()
    assert torch.equal(plain(**batch).logits, bare)
    assert not any(module._forward_hooks for module in plain.modules())


def test_it_stays_frozen_while_another_adapter_learns_beside_it():
    source = trained()
    guard = FrozenAdapter.load(source)
    kept = {name: (w.A.clone(), w.B.clone()) for name, w in guard.weights.items()}
    model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj"]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with guard.attach(model):
        for _ in range(2):
            model(**tiny.batch()).loss.backward()
            optimizer.step()
    assert all(torch.equal(w.A, kept[n][0]) and torch.equal(w.B, kept[n][1]) for n, w in guard.weights.items())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_control_has_the_same_ranks_and_norms():
    guard = FrozenAdapter.load(trained(), coefficient=0.5)
    control = guard.random_like(seed=1)
    assert control.coefficient == 0.5
    for name, learned in guard.weights.items():
        drawn = control.weights[name]
        assert drawn.A.shape == learned.A.shape
        one, two = (float((w.scale * w.B @ w.A).norm()) for w in (learned, drawn))
        assert two == pytest.approx(one, rel=1e-5)
        assert (
            abs(float(torch.cosine_similarity((drawn.B @ drawn.A).flatten(), (learned.B @ learned.A).flatten(), 0)))
            < 0.3
        )
    again = guard.random_like(seed=1)
    assert all(torch.equal(again.weights[n].A, control.weights[n].A) for n in again.weights)


def test_an_adapter_of_another_model_is_refused():
    guard = FrozenAdapter({"model.layers.0.self_attn.q_proj": LoraFactors(torch.ones(1, 8), torch.ones(8, 1), 1.0)})
    with pytest.raises(AttachError, match="is 8x8, the model's weight 32x32"), guard.attach(tiny.model()):
        pass
    elsewhere = FrozenAdapter({"transformer.h.0": LoraFactors(torch.ones(1, 8), torch.ones(8, 1), 1.0)})
    with (
        pytest.raises(AttachError, match=r"the model has no transformer.h.0"),
        elsewhere.attach(tiny.model()),
    ):
        pass
    with pytest.raises(UsageError, match="at least one weight"):
        FrozenAdapter({})
    with pytest.raises(UsageError, match="must be finite"):
        FrozenAdapter(guard.weights, coefficient=float("inf"))


def test_an_adapter_that_lacks_weights_is_refused_when_it_is_put_on(tmp_path):
    """Half of its tensors are an adapter too, and not the one that was trained."""
    trained().save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    with FrozenAdapter.load(tmp_path).attach(tiny.model()):
        pass
    beside = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with FrozenAdapter.load(tmp_path).attach(beside):
        pass
    half = {key: tensor.clone() for key, tensor in load_file(file).items() if ".layers.3." not in key}
    save_file(half, file, metadata={"format": "pt"})
    with (
        pytest.raises(
            AttachError, match=r"calls for 8 weights of this model and its tensors are of 6, without model.layers.3"
        ),
        FrozenAdapter.load(tmp_path).attach(tiny.model()),
    ):
        pass
