"""The loss in chunks is the loss on all logits, gradients included, in float64; and where it cannot be, the plain path is taken."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import architectures
import tiny
import tropism as tp
from tropism import hooks
from tropism.chunked_loss import Tail, find_tail, summed_divergence
from tropism.errors import GuardNotInForce
from tropism.interventions.base import Intervention
from tropism.training.loss import SUPERVISED, SupervisedLoss, label_logits, response_loss

CHUNK = 3
"""Positions at a time, of six: two chunks."""


def chunked(model, vocabulary):
    return SupervisedLoss(model, numbers=CHUNK * vocabulary + 1)


def call(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model(**inputs, **{SUPERVISED: batch["labels"]})


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def both(model, batch):
    """Loss and gradients of the plain path and of the chunked one, and how many rows of logits each model returned."""
    chunks = chunked(model, model.get_output_embeddings().weight.shape[0])
    results = []
    for context, loss in ((label_logits(model), response_loss), (chunks.in_force(), chunks)):
        with context:
            outputs = call(model, batch)
            value = loss(outputs, batch["labels"])
            results.append((value.detach(), gradients(model, value), outputs.logits.shape[1]))
    return results


def assert_same(plain, found):
    torch.testing.assert_close(found[0], plain[0], rtol=1e-12, atol=1e-12)
    assert found[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "every weight"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere", "phi", "gptj", "gpt2", "qwen3_moe"])
def test_chunks_give_the_loss_and_gradients_of_whole_logits(name, lora):
    model = architectures.build(name, lora=lora)
    model.eval()  # no dropout: each side would draw its own
    plain, found = both(model, architectures.batch(name))
    assert plain[2] > CHUNK
    assert found[2] == 1
    assert_same(plain, found)


def test_logits_that_are_one_chunk_are_taken_whole():
    model, batch = architectures.build("llama").eval(), architectures.batch()
    positions = int((batch["labels"][:, 1:] != -100).sum())
    for numbers, rows in ((64 * positions, positions), (64 * positions - 1, 1)):
        with SupervisedLoss(model, numbers).in_force():
            assert call(model, batch).logits.shape[1] == rows


def test_a_divergence_in_chunks_is_that_of_whole_logits():
    torch.manual_seed(0)
    head, base_head, tail = nn.Linear(5, 7).double(), nn.Linear(5, 7).double(), Tail(0.5, 2.0)
    h, base_h = torch.randn(2, 10, 5, dtype=torch.float64)
    p, base = (tail(layer(x)).softmax(-1) for layer, x in ((head, h.requires_grad_()), (base_head, base_h)))
    plain = (p * (p / base).log()).sum()
    found = summed_divergence(head, tail, h, base_head, base_h, numbers=2 * 3 * 7)  # three positions at a time
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)
    asked = [h, *head.parameters()]
    for got, wanted in zip(torch.autograd.grad(found, asked), torch.autograd.grad(plain, asked), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)


def test_the_tail_is_found_by_running_the_model():
    assert find_tail(architectures.build("llama")) == Tail()
    gemma = architectures.build("gemma2")
    assert find_tail(gemma) == Tail(cap=gemma.config.final_logit_softcapping)
    cohere = architectures.build("cohere")
    assert find_tail(cohere) == Tail(scale=cohere.config.logit_scale)
    granite = architectures.build("granite")
    granite.config.logits_scaling = 8.0
    assert find_tail(granite) == Tail(scale=1 / 8)


def test_a_model_that_does_more_behind_its_head_takes_the_plain_path(monkeypatch):
    model = architectures.build("llama").eval()
    forward = type(model).forward

    def masked(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        outputs.logits = outputs.logits - 2.0 * (torch.arange(outputs.logits.shape[-1]) == 5)
        return outputs

    monkeypatch.setattr(type(model), "forward", masked)
    assert find_tail(model) is None
    plain, found = both(model, architectures.batch())
    assert found[2] == plain[2] > 1
    assert_same(plain, found)


@pytest.mark.parametrize("at", ["hook", "gradient", "dropout"])
def test_what_must_see_all_logits_does(at):
    model = architectures.build("llama").eval()
    head = model.lm_head
    if at == "hook":
        head.register_forward_hook(lambda _m, _x, y: y * 2)
    elif at == "gradient":
        head.weight.register_hook(lambda g: g * 2)
    else:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], lora_dropout=0.5)).train()
    with chunked(model, 64).in_force():
        assert call(model, architectures.batch()).logits.shape[1] > 1


def test_an_adapter_and_a_bias_on_the_head_are_trained_as_ever():
    model = architectures.build("phi").eval()
    nn.init.normal_(model.lm_head.bias)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)).eval()
    model.get_output_embeddings().base_layer.bias.requires_grad_(True)
    plain, found = both(model, architectures.batch())
    assert found[2] == 1
    assert any("lm_head" in name and "lora" in name for name in found[1])
    assert any(name.endswith("bias") for name in found[1])
    assert_same(plain, found)


@pytest.mark.parametrize("guard", [tp.GradientProjection, tp.Ablation])
def test_a_guard_at_the_last_block_acts_the_same(guard):
    model = architectures.build("llama", lora=True)
    last = tp.Site(model.config.num_hidden_layers - 1)
    directions = tp.Directions({last: torch.randn(2, model.config.hidden_size, generator=torch.manual_seed(1))})
    losses = SupervisedLoss(model, numbers=CHUNK * 64)
    batch, results = architectures.batch(), []
    for context, loss in ((label_logits(model), response_loss), (losses.in_force(), losses)):
        with context, guard(directions).attach(model):
            value = loss(call(model, batch), batch["labels"])
            results.append((value.detach(), gradients(model, value)))
    assert_same(*results)


@dataclass(frozen=True)
class Silent(Intervention):
    """A guard whose edit of the gradient never happens."""

    place: ClassVar[str] = "activation gradients"

    def install(self, attachment):
        attachment.expect("an edit", by="backward")
        for handle in hooks.around_forward(attachment.model, before=lambda *_: attachment.reachable("an edit")):
            attachment.own(handle)


def test_a_guard_that_is_silent_in_the_backward_pass_is_noticed_although_it_misses_the_models_output():
    model, batch = architectures.build("llama", lora=True), architectures.batch()
    loss = chunked(model, 64)
    with loss.in_force(), pytest.raises(GuardNotInForce, match="a backward pass reached the model's output"):  # noqa: SIM117
        with Silent().attach(model):
            loss(call(model, batch), batch["labels"]).backward()


def test_accumulated_batches_and_evaluation_and_a_batch_without_labels():
    model = architectures.build("llama", lora=True)
    batch = architectures.batch()
    count = int((batch["labels"][:, 1:] != -100).sum())
    whole, _ = both(model, batch)
    loss = chunked(model, 64)
    model.zero_grad()
    with loss.in_force():
        for row in range(2):
            part = {name: value[row : row + 1] for name, value in batch.items()}
            loss(call(model, part), part["labels"], count).backward()
        for name, parameter in model.named_parameters():
            if name in whole[1]:
                torch.testing.assert_close(parameter.grad, whole[1][name], rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            torch.testing.assert_close(loss(call(model, batch), batch["labels"]), whole[0], rtol=1e-12, atol=1e-12)
        empty = {**batch, "labels": torch.full_like(batch["labels"], -100)}
        none = loss(call(model, empty), empty["labels"], count)
        none.backward()
        assert none == 0


def test_probing_leaves_the_model_and_random_state_alone():
    model = tiny.model().train()
    before = torch.get_rng_state()
    find_tail(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())
