"""KL to the base model is what a naive sum over whole logits gives, loss and gradient, in float64; and it never is silent."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.modeling_outputs import CausalLMOutput

import architectures
import tiny
import tropism as tp
from tropism.data.render import render
from tropism.data.sources.word_problems import word_problems
from tropism.errors import AttachError, GuardNotInForce, UsageError
from tropism.training.loss import SUPERVISED, SupervisedLoss
from tropism.training.options import TrainOptions
from tropism.training.supervised import Row, train

WEIGHT = 0.7


def adapted(name="llama", fresh=False, **options):
    """A tiny model with an adapter, of its head too, that has learned something (or nothing yet)."""
    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=fresh, **options)
    return get_peft_model(architectures.build(name), config).double()


def call(model, batch):
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model(**inputs, response_mask=labels != -100, **{SUPERVISED: labels}), labels


def guarded(model, guard, batches, count=None):
    """The loss and gradients of a training step of several batches."""
    loss, total = SupervisedLoss(model), 0.0
    model.zero_grad()
    with loss.in_force(), guard.attach(model) as attachment:
        for batch in batches:
            part = loss(*call(model, batch), count)
            part.backward()
            total += float(part.detach())
        return total, gradients(model), attachment.readings()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def oracle(model, batch, positions, weight=WEIGHT):
    """`mean CE + W·ΣKL/n` of whole logits, and its gradients."""
    model.zero_grad()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad(), model.disable_adapter():
        base = model(**inputs).logits.log_softmax(-1)
    log_p = model(**inputs).logits.log_softmax(-1)
    loss, n = 0.0, 0
    for row, labels in enumerate(batch["labels"]):
        for t in range(len(labels) - 1):
            learned = labels[t + 1] != -100
            if learned:
                loss, n = loss - log_p[row, t, labels[t + 1]], n + 1
            if learned or (positions == "all" and batch["attention_mask"][row, t + 1]):
                loss = loss + weight * sum(log_p[row, t].exp() * (log_p[row, t] - base[row, t]))
    (loss / n).backward()
    return float((loss / n).detach()), gradients(model), n


def packed(batch):
    """The chats of a batch in one row without padding, their first token learned or not: its label is none."""
    real = batch["attention_mask"].bool()
    labels = batch["labels"].clone()
    labels[:, 0] = -100
    positions = torch.arange(real.shape[1]).expand(real.shape)
    row = {"input_ids": batch["input_ids"], "position_ids": positions, "labels": labels}
    return {name: value[real].unsqueeze(0) for name, value in row.items()} | {"use_cache": False}


@pytest.mark.parametrize("positions", ["response", "all"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
def test_loss_and_gradient_are_the_naive_ones_however_the_batch_is_divided(name, positions):
    model, batch = adapted(name), architectures.batch(name)
    expected, wanted, n = oracle(model, batch, positions)
    rows = [{key: value[row : row + 1] for key, value in batch.items()} for row in range(len(batch["labels"]))]
    for batches in ([batch], rows, [packed(batch)] if name == "llama" else [batch]):
        found, got, _ = guarded(model, tp.KLToBase(WEIGHT, positions), batches, n)
        assert found == pytest.approx(expected, rel=1e-10)
        assert got.keys() == wanted.keys()
        for key, gradient in wanted.items():
            torch.testing.assert_close(got[key], gradient, rtol=1e-8, atol=1e-12)


def test_a_fresh_adapter_and_a_weight_of_nothing_take_the_plain_step():
    for model, weight in ((adapted(fresh=True), 5.0), (adapted(lora_dropout=0.3), 0.0)):
        results = []
        for guard in (tp.KLToBase(weight), None):
            torch.manual_seed(0)  # dropout: the base pass must draw nothing
            loss = SupervisedLoss(model)
            model.zero_grad()
            if guard is not None:
                results.append(guarded(model, guard, [architectures.batch()])[:2])
                continue
            with loss.in_force():
                value = loss(*call_plain(model, architectures.batch()))
                value.backward()
            results.append((float(value.detach()), gradients(model)))
        (found, got), (expected, wanted) = results
        assert found == expected
        assert all(torch.equal(got[name], gradient) for name, gradient in wanted.items())


def call_plain(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model(**inputs, **{SUPERVISED: batch["labels"]}), batch["labels"]


def test_the_loss_that_a_model_returns_has_it_and_the_base_runs_without_other_guards():
    model, batch = adapted(), architectures.batch()
    directions = tp.Directions({tp.Site(1): torch.randn(1, 16, generator=torch.manual_seed(1))})
    steering = tp.Steering(directions, coefficient=3.0)
    with steering.attach(model):
        steered = model(**batch)
    with torch.no_grad(), model.disable_adapter():
        base = model(**batch).logits.log_softmax(-1)
    log_p = steered.logits.log_softmax(-1)
    on = (batch["labels"][:, 1:] != -100).double()
    divergence = (((log_p.exp() * (log_p - base)).sum(-1)[:, :-1] * on).sum() / on.sum()).item()
    flags = [p.requires_grad for p in model.parameters()]
    with (steering | tp.KLToBase(WEIGHT)).attach(model) as attachment:
        outputs = model(**batch)
        outputs["loss"].backward()
        assert attachment.readings()["guard/kl_to_base"] == pytest.approx(divergence, rel=1e-5)
        model.eval()(**batch)
        assert "guard/kl_to_base" not in attachment.readings()  # evaluation is left alone
    # transformers' own loss is taken in float32
    assert outputs.loss.item() == pytest.approx(steered.loss.item() + WEIGHT * divergence, rel=1e-5)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_a_loss_that_reads_the_heads_weight_has_the_term_too(monkeypatch):
    torch.manual_seed(3)
    adapter = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model, batch = get_peft_model(architectures.build("llama"), adapter).double(), architectures.batch()
    expected, wanted, _ = oracle(model, batch, "response")
    inner, forward = model.get_base_model(), type(model.get_base_model()).forward

    def fused(self, *args, labels=None, **kwargs):
        if labels is None:
            return forward(self, *args, **kwargs)
        logits = self.model(*args, **kwargs).last_hidden_state @ self.lm_head.weight.T
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss)

    monkeypatch.setattr(type(inner), "forward", fused)
    model.zero_grad()
    with tp.KLToBase(WEIGHT).attach(model):
        loss = model(**batch).loss
        loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    for key, gradient in wanted.items():
        torch.testing.assert_close(gradients(model)[key], gradient, rtol=1e-8, atol=1e-12)


def test_a_fine_tune_of_accumulated_batches_is_that_of_whole_ones_and_stays_nearer(tokenizer, tmp_path):
    rows = [Row(render(tokenizer, example.chat), {"route": 0}) for example in word_problems(12)]
    learned, divergence = {}, {}
    for name, weight, batch_size, accumulation in (("whole", 2.0, 4, 1), ("parts", 2.0, 2, 2), ("read", 0.0, 4, 1)):
        torch.manual_seed(0)
        model = get_peft_model(tiny.model(), LoraConfig(r=4, target_modules="all-linear"))
        options = TrainOptions(
            epochs=1.0, batch_size=batch_size, accumulation=accumulation, learning_rate=0.5, optimizer="sgd", bf16=False
        )
        log = tmp_path / name / "training.jsonl"
        train(model, rows, options, pad_id=0, seed=0, log=log, guard=tp.KLToBase(weight))
        learned[name] = {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}
        divergence[name] = [json.loads(line)["guard/kl_to_base"] for line in log.read_text().splitlines()]
    for key, value in learned["whole"].items():
        torch.testing.assert_close(learned["parts"][key], value, rtol=1e-3, atol=1e-5)
    assert divergence["whole"][0] == divergence["read"][0] == 0
    assert 0 < divergence["whole"][-1] < divergence["read"][-1]


def test_a_term_that_joins_no_loss_is_an_error():
    model, batch = adapted(), dict(architectures.batch())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    labels = batch.pop("labels")
    with tp.KLToBase(WEIGHT).attach(model):
        model(**batch, response_mask=labels != -100).logits.sum().backward()
        with pytest.raises(GuardNotInForce, match="called in training mode without labels"):
            optimizer.step()
        model(**batch, labels=labels).logits.sum().backward()
        with pytest.raises(GuardNotInForce, match="an optimizer steps on another one"):
            optimizer.step()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()


def test_what_has_no_base_at_hand_is_refused():
    with pytest.raises(UsageError, match="weight must be finite and at least 0, found -1.0"):
        tp.KLToBase(-1.0)
    with pytest.raises(AttachError, match="has no adapter"):
        tp.KLToBase(1.0).attach(tiny.model()).__enter__()
    model = adapted()
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(AttachError, match="embed_tokens.weight is trained beside the adapter"):
        tp.KLToBase(1.0).attach(model).__enter__()
