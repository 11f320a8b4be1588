"""Ablation modes: each is what it says, changes logits, and leaves no trace."""

import pytest
import torch

import routing_oracle as oracle
import tiny
from tropism.errors import AttachError, GuardNotInForce
from tropism.interventions.routing_modes import MODES, ablation_mode, verify_mode


def logits(model):
    batch = tiny.batch()
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def without(adapter):
    """The same model with one adapter deleted: base plus the other one."""
    model = oracle.model()
    model.delete_adapter(adapter)
    return model


@pytest.mark.parametrize(("mode", "deleted"), [("forget_ablated", "forget"), ("retain_ablated", "retain")])
def test_an_ablated_model_is_the_base_with_the_other_adapter(mode, deleted):
    model = oracle.model()
    with ablation_mode(model, mode):
        torch.testing.assert_close(logits(model), logits(without(deleted)), rtol=0, atol=1e-12)


def test_the_forget_scale_multiplies_the_forget_branch():
    model = oracle.model()
    full = logits(model)
    with ablation_mode(model, "full"):
        assert torch.equal(logits(model), full)
    with ablation_mode(model, "full", 0.0):
        at_zero = logits(model)
    with ablation_mode(model, "forget_ablated"):
        assert torch.equal(logits(model), at_zero)
    with oracle.scaled(model, "forget", 0.25):
        expected = logits(model)
    with ablation_mode(model, "full", 0.25):
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("mode", MODES)
def test_leaving_restores_logits_bit_for_bit_and_requires_grad(mode):
    model = oracle.model(dtype=torch.bfloat16)
    for p in oracle.parameters(model, "retain").values():
        p.requires_grad_(False)
    before, flags = logits(model), [p.requires_grad for p in model.parameters()]
    with pytest.raises(KeyError), ablation_mode(model, mode, 1.0 if mode == "forget_ablated" else 0.3):
        with model.disable_adapter():  # PEFT leaves it with every active adapter unfrozen
            logits(model)
        raise KeyError
    assert torch.equal(logits(model), before)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_a_mode_that_changes_nothing_raises():
    model = oracle.model()
    assert verify_mode(model, tiny.batch(), "forget_ablated") > 0
    assert verify_mode(model, tiny.batch(), "retain_ablated") > 0
    assert model.training
    for name, p in oracle.parameters(model, "forget").items():
        if "lora_B" in name:
            torch.nn.init.zeros_(p)
    with pytest.raises(GuardNotInForce, match="forget_ablated changes no logit: adapter 'forget' adds nothing"):
        verify_mode(model, tiny.batch(), "forget_ablated")
    with pytest.raises(AttachError, match="found 'full', which ablates nothing"):
        verify_mode(model, tiny.batch(), "full")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("off",), "full, forget_ablated, retain_ablated, found 'off'"),
        (("full", 1.5), r"forget_scale must lie in \[0, 1\], found 1.5"),
        (("full", -0.1), "found -0.1"),
        (("forget_ablated", 0.5), "no forget adapter to scale, found forget_scale=0.5"),
    ],
)
def test_bad_arguments(arguments, says):
    with pytest.raises(AttachError, match=says), ablation_mode(oracle.model(), *arguments):
        pass


def test_models_on_which_a_mode_would_do_nothing_are_refused():
    with (
        pytest.raises(AttachError, match="LoRA adapter 'retain', found no adapter"),
        ablation_mode(tiny.model(), "full"),
    ):
        pass
    model = oracle.model()
    model.set_adapter("retain")
    with pytest.raises(AttachError, match="'forget' must be active, found active"), ablation_mode(model, "full"):
        pass
    model = oracle.model()
    model.merge_adapter()
    with pytest.raises(AttachError, match="merged into the weights"), ablation_mode(model, "forget_ablated"):
        pass
    model = oracle.model()
    with (
        ablation_mode(model, "full"),
        pytest.raises(AttachError, match="already; leave it before"),
        ablation_mode(model, "full"),
    ):
        pass
    with ablation_mode(model, "full"):
        pass
