"""The fine-tune: label-only logits change nothing but the cost; guards are attached for exactly the training."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, TrainerCallback

import tiny
import tropism as tp
from tropism.data.collate import pad
from tropism.data.render import render
from tropism.data.sources.word_problems import word_problems
from tropism.errors import DataError, GuardNotInForce, RunFailed
from tropism.interventions.base import attachments
from tropism.training.loss import SUPERVISED, label_logits, response_loss
from tropism.training.options import TrainOptions
from tropism.training.supervised import Row, train


@pytest.fixture
def rows(tokenizer):
    return [Row(render(tokenizer, e.chat), {"route": 0}) for e in word_problems(12)]


@pytest.fixture
def peft_model(model):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_label_only_logits_give_the_loss_and_gradients_of_all_logits(peft_model, rows):
    model = peft_model.double()
    batch = pad([row.rendered for row in rows[:5]], 0)
    batch.pop("position_ids")
    labels = batch.pop("labels")
    full = model(**batch, labels=labels).loss
    expected = gradients(model, full)
    with label_logits(model):
        outputs = model(**batch, **{SUPERVISED: labels})
        few = response_loss(outputs, labels)
        found = gradients(model, few)
    assert outputs.logits.shape[:2] == (1, int((labels != -100).sum()))
    # transformers' own loss is taken in float32
    torch.testing.assert_close(few.float(), full.float(), atol=1e-6, rtol=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


def test_outside_its_context_and_without_labels_all_logits_are_computed(peft_model):
    batch = tiny.batch()
    plain = peft_model(input_ids=batch["input_ids"]).logits
    with label_logits(peft_model):
        torch.testing.assert_close(peft_model(input_ids=batch["input_ids"]).logits, plain, atol=0, rtol=0)


def test_a_loss_on_all_logits_by_mistake_is_not_silent(peft_model):
    batch = tiny.batch()
    with pytest.raises(
        GuardNotInForce, match="label-only logits are not in force: the model returned 9 rows for 15 labels"
    ):
        response_loss(peft_model(input_ids=batch["input_ids"][:1]), batch["labels"])


def test_a_fine_tune_learns_logs_every_step_and_lets_go(peft_model, rows, tmp_path):
    seen = []
    options = TrainOptions(epochs=8.0, batch_size=4, learning_rate=1e-2, bf16=False)
    train(
        peft_model, rows, options, pad_id=0, seed=0, log=tmp_path / "training.jsonl", report=lambda *x: seen.append(x)
    )
    logged = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == list(range(1, options.steps(len(rows)) + 1)) == [s for s, _, _ in seen]
    assert {"step", "epoch", "loss", "learning_rate", "grad_norm"} <= set(logged[0])
    assert logged[-1]["loss"] < 0.8 * logged[0]["loss"]
    assert not list(attachments(peft_model))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_accumulation_changes_no_loss(peft_model, rows, tmp_path, accumulation):
    options = TrainOptions(max_steps=1, batch_size=12 // accumulation, accumulation=accumulation, bf16=False)
    train(peft_model, rows, options, pad_id=0, seed=0, log=tmp_path / "t.jsonl")
    batch = pad([row.rendered for row in rows], 0)
    batch.pop("position_ids")
    torch.manual_seed(0)
    fresh = get_peft_model(tiny.model(), LoraConfig(r=4, target_modules="all-linear"))
    expected = fresh(**batch).loss.item()
    assert json.loads((tmp_path / "t.jsonl").read_text())["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_guard_is_in_force_in_training_and_its_readings_are_logged(peft_model, rows, tmp_path):
    guard = tp.GradientProjection(tp.Directions({tp.Site(1): torch.randn(2, 32), tp.Site(2): torch.randn(2, 32)}))
    options = TrainOptions(max_steps=2, batch_size=4, bf16=False)
    train(peft_model, rows, options, pad_id=0, seed=0, log=tmp_path / "t.jsonl", guard=guard)
    logged = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    for row in logged:
        assert row["guard/gradient_projection/resid_post.1/cosine_after"] < 1e-3
        assert 0 < row["guard/gradient_projection/resid_post.1/share_removed"] < 1
    assert not list(attachments(peft_model))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_schedule_warms_up(peft_model, rows, tmp_path, schedule):
    options = TrainOptions(max_steps=5, batch_size=4, bf16=False, schedule=schedule, warmup_steps=4, learning_rate=0.4)
    train(peft_model, rows, options, pad_id=0, seed=0, log=tmp_path / "training.jsonl")
    logged = [json.loads(line)["learning_rate"] for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert logged == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_a_loss_that_is_no_number_fails_the_run_and_keeps_its_log(peft_model, rows, tmp_path):
    with torch.no_grad():
        peft_model.get_base_model().model.layers[2].mlp.down_proj.base_layer.weight.fill_(float("nan"))
    options = TrainOptions(max_steps=3, batch_size=4, bf16=False)
    with pytest.raises(RunFailed, match="the loss at step 1 is nan, not a finite number"):
        train(peft_model, rows, options, pad_id=0, seed=0, log=tmp_path / "t.jsonl",
              guard=tp.Ablation(tp.Directions({tp.Site(0): torch.randn(32)})))  # fmt: skip
    assert json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])["loss"] is None
    assert not list(attachments(peft_model))


def test_checkpointing_gives_the_same_losses(rows, tmp_path):
    losses = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(tiny.model(), LoraConfig(r=4, target_modules="all-linear"))
        options = TrainOptions(max_steps=2, batch_size=4, bf16=False, checkpointing=checkpointing)
        train(model, rows, options, pad_id=0, seed=0, log=tmp_path / "t.jsonl")
        losses.append([json.loads(line)["loss"] for line in (tmp_path / "t.jsonl").read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_empty_training_set_is_refused(peft_model, tmp_path):
    with pytest.raises(DataError, match="the training set is empty"):
        train(peft_model, [], TrainOptions(), pad_id=0, seed=0, log=tmp_path / "t.jsonl")


def test_steps_are_counted_as_the_trainer_counts_them(peft_model, rows, tmp_path):
    for options in (
        TrainOptions(epochs=1.5, batch_size=5, bf16=False),
        TrainOptions(batch_size=5, accumulation=2, bf16=False),
    ):
        train(peft_model, rows, options, pad_id=0, seed=0, log=tmp_path / "t.jsonl")
        assert len((tmp_path / "t.jsonl").read_text().splitlines()) == options.steps(len(rows))


def test_a_gradient_that_is_no_number_fails_the_run_in_its_last_step_too(peft_model, rows, tmp_path):
    class Spoil(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            if state.global_step == 1:
                next(p for p in model.parameters() if p.requires_grad).grad.fill_(float("nan"))

    options = TrainOptions(max_steps=2, batch_size=4, bf16=False)
    with pytest.raises(RunFailed, match="1 trained weights are not finite numbers after the last step"):
        train(peft_model, rows, options, pad_id=0, seed=0, log=tmp_path / "t.jsonl", callbacks=[Spoil()])


def test_a_gradient_norm_that_is_no_number_fails_the_run_at_its_step(peft_model, rows, tmp_path):
    weight = next(p for p in peft_model.parameters() if p.requires_grad)
    weight.register_hook(lambda gradient: gradient * float("nan"))
    options = TrainOptions(max_steps=2, batch_size=4, bf16=False)
    with pytest.raises(RunFailed, match="the gradient's norm at step 1 is nan, not a finite number"):
        train(peft_model, rows, options, pad_id=0, seed=0, log=tmp_path / "t.jsonl")


def test_a_balancing_loss_that_the_models_config_asks_for_is_said_to_be_left_out(rows, tmp_path, caplog):
    config = MixtralConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, output_router_logits=True, router_aux_loss_coef=0.5,
    )  # fmt: skip
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=2, target_modules=["q_proj"]))
    caplog.set_level("WARNING", logger="tropism")
    options = TrainOptions(max_steps=1, batch_size=4, bf16=False)
    train(model, rows, options, pad_id=0, seed=0, log=tmp_path / "t.jsonl")
    assert "router_aux_loss_coef=0.5" in caplog.text
