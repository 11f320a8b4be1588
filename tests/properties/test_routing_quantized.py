"""Gradient routing over base weights of 4 bits: the adapters' gradients still equal the row-by-row reference."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import routing_oracle as oracle
import tiny
import tropism as tp
from tropism.interventions.routing import GradientRouting

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

ROUTE = torch.tensor([1, 0, 2, 1])


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    import peft
    from bitsandbytes.nn import Linear4bit

    folder = tmp_path_factory.mktemp("base")
    tiny.model(width=64).save_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    )
    assert any(isinstance(module, Linear4bit) for module in base.modules())
    options = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
    model = tp.two_adapters(
        base,
        retain=peft.LoraConfig(r=4, lora_alpha=8, **options),
        forget=peft.LoraConfig(r=2, lora_alpha=12, **options),
    ).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_rows_equal_the_row_by_row_reference(quantized):
    batch = tiny.batch(rows=4)
    expected = oracle.row_by_row(quantized, batch, ROUTE, forget_live_on_retain=False)
    oracle.zero(quantized)
    with GradientRouting().attach(quantized):
        oracle.token_losses(quantized, batch, route=ROUTE).sum().backward()
    found = oracle.gradients(quantized)
    assert set(found) == set(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * expected[name].abs().max())


def test_the_modes_change_logits_and_leaving_restores_them(quantized):
    batch = tiny.batch(rows=2)
    with torch.no_grad():
        before = quantized(**batch).logits
        with tp.ablation_mode(quantized, "forget_ablated"):
            assert not torch.equal(quantized(**batch).logits, before)
        assert torch.equal(quantized(**batch).logits, before)
