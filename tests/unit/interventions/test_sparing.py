"""Passes in training mode that guards on activations can leave alone: rollouts, and the reference of PEFT models."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
import tropism as tp
import unchecked
from hand_edits import inside_checkpoint
from tropism.errors import AttachError, UsageError
from tropism.interventions.base import Attachment

SITE = tp.Site(1)


@pytest.fixture
def directions(generator):
    return tp.Directions({SITE: torch.randn(2, 32, generator=generator)})


@pytest.fixture
def model():
    return get_peft_model(tiny.model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).train()


def generated(model):
    return model.generate(input_ids=tiny.batch()["input_ids"], max_new_tokens=6, do_sample=False)


def test_rollouts_are_plain_where_they_are_spared_and_guarded_elsewhere(model, directions):
    plain = generated(model)
    logits = model(**tiny.batch()).logits
    guard = tp.Ablation(directions)
    with guard.attach(model):
        assert not torch.equal(generated(model), plain)
    with guard.attach(model, spare={"rollouts"}):
        assert torch.equal(generated(model), plain)
        assert not torch.equal(model(**tiny.batch()).logits, logits)
        model(**tiny.batch()).loss.backward()


def test_the_reference_is_plain_where_it_is_spared(model, directions):
    """The reference of a PEFT model is the model with its adapters off, or with a copy of them in their place."""
    model.add_adapter("ref", model.peft_config["default"])
    batch = tiny.batch()

    def passes():
        with torch.no_grad():
            with model.disable_adapter():
                off = model(**batch).logits
            model.set_adapter("ref")
            ref = model(**batch).logits
            model.set_adapter("default")
        return off, ref, model(**batch).logits

    plain = passes()
    for spare, spared in (((), False), (("reference",), True)):
        with tp.Ablation(directions).attach(model, spare=spare):
            off, ref, policy = passes()
        assert torch.equal(off, plain[0]) is spared
        assert torch.equal(ref, plain[1]) is spared
        assert not torch.equal(policy, plain[2])


def test_a_reference_between_forward_and_backward_leaves_the_recomputation_guarded(directions):
    """Checkpointing recomputes the policy's blocks after the reference's pass: they are guarded as they were."""
    found = []
    for recomputed in (False, True):
        model = get_peft_model(tiny.model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).train()
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        if recomputed:
            inside_checkpoint(model.base_model.model)
        with tp.Ablation(directions).attach(model, spare={"reference"}):
            loss = model(**tiny.batch()).loss
            with torch.no_grad(), model.disable_adapter():
                model(**tiny.batch(seed=1))
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("lora" in name)
            loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() != set()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_a_follower_acts_when_its_leader_does(directions):
    model, reference = tiny.model(), tiny.model(seed=1).eval()
    plain = reference(**tiny.batch()).logits
    guard = tp.Ablation(directions)
    with guard.attach(model) as leader, guard.attach(reference, leader=leader):
        model.train()
        assert not torch.equal(reference(**tiny.batch()).logits, plain)
        model.eval()
        assert torch.equal(reference(**tiny.batch()).logits, plain)


def test_what_cannot_be_told_apart_is_refused(model, directions):
    guard = tp.Ablation(directions)
    with pytest.raises(UsageError, match="spare may hold rollouts, reference, found 'evaluation'"):
        unchecked.build(Attachment, guard, model, None, {"evaluation"})
    with pytest.raises(AttachError, match="told by its adapters, which are switched off, and this model has none"):
        guard.attach(tiny.model(), spare={"reference"}).__enter__()
    with pytest.raises(AttachError, match="LlamaModel has no generate"):
        guard.attach(tiny.model().model, spare={"rollouts"}).__enter__()
