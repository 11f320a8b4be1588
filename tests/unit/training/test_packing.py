"""Chats that share a row are learned as they are in rows of their own, in float64; models in which they are not are refused."""

import copy
import json
from contextlib import ExitStack

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import architectures
import tiny
import tiny_causal
import tropism as tp
from tropism.data.collate import Collator
from tropism.data.render import Rendered, render
from tropism.data.sources.word_problems import word_problems
from tropism.errors import AttachError, DataError, ModelError
from tropism.names import IGNORE
from tropism.training.loss import SUPERVISED, SupervisedLoss
from tropism.training.options import TrainOptions
from tropism.training.packing import WITHOUT_CACHE, check_columns, check_packable
from tropism.training.shared_batches import Filled, Rows
from tropism.training.supervised import Row, train

LENGTHS, PROMPTS, ROUTES = (9, 4, 1, 6), (5, 2, 0, 0), (1, 0, 1, 2)
"""The last two chats begin with a response, and their first token has nothing before it that predicts it."""


def chats(seed=0):
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 60, (n,), generator=draw).tolist() for n in LENGTHS]
    masks = [[i >= prompt for i in range(n)] for n, prompt in zip(LENGTHS, PROMPTS, strict=True)]
    rendered = [Rendered(row, mask, "") for row, mask in zip(ids, masks, strict=True)]
    return [{"rendered": row, "route": route} for row, route in zip(rendered, ROUTES, strict=True)]


def step(model, rows, guard, *, packing):
    """Loss and gradients of one forward and backward pass."""
    keys = () if guard is None else sorted(guard.batch_keys)
    batch = Collator(0, keys, packing=packing)(rows)
    labels = batch.pop("labels")
    loss = SupervisedLoss(model)
    model.zero_grad()
    with ExitStack() as stack:
        stack.enter_context(loss.in_force())
        if guard is not None:
            stack.enter_context(guard.attach(model))
        outputs = model(**batch, **(WITHOUT_CACHE if packing else {}), **{SUPERVISED: labels})
        value = loss(outputs, labels)
        value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-10, atol=1e-10)


def build(name="llama", **options):
    """The model in evaluation mode with torch's attention: the eager one takes its softmax in float32."""
    model = architectures.build(name, **{"lora": True, **options}).eval()
    model.set_attn_implementation("sdpa")
    return model


def directions(model):
    sites = [tp.Site(1), tp.Site(2, "attn_out")]
    draw = torch.Generator().manual_seed(1)
    return tp.Directions({site: torch.randn(1, model.config.hidden_size, generator=draw) for site in sites})


GUARDS = {
    "none": lambda model: None,
    "ablation": lambda model: tp.Ablation(directions(model), positions="response"),
    "steering": lambda model: tp.Steering(directions(model), coefficient=3.0, positions="response"),
    "gradient projection": lambda model: tp.GradientProjection(directions(model), positions="response"),
}


# gemma3 has windows of 4 tokens, gpt2 learned positions
@pytest.mark.parametrize(
    ("name", "guard"), [*(("llama", guard) for guard in GUARDS), ("gemma3", "none"), ("gpt2", "none")]
)
def test_packed_loss_and_gradients_are_those_of_padded_chats(name, guard):
    model = build(name)
    padded, packed = (step(model, chats(), GUARDS[guard](model), packing=packing) for packing in (False, True))
    assert_same(packed, padded)


@pytest.mark.parametrize("options", [{}, {"semantics": "path"}, {"forget_live_on_retain": True}], ids=str)
def test_each_chat_of_a_packed_row_keeps_its_route(options):
    lora = LoraConfig(r=2, target_modules="all-linear")
    model = tp.two_adapters(build(lora=False), retain=lora, forget=lora).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    guard = tp.GradientRouting(**options)
    padded, packed = (step(model, chats(), guard, packing=packing) for packing in (False, True))
    assert any("forget" in name for name in padded[1])
    assert_same(packed, padded)


def test_another_chat_beside_it_changes_nothing():
    model = build()
    steps = []
    for seed in (3, 4):  # what stands beside the first chat is another, and nothing is learned of it
        rows = Rows([chats()[0], *chats(seed)[1:]])
        steps.append(step(model, [rows[0], *(rows[Filled(i)] for i in (1, 2, 3))], None, packing=True))
    assert_same(steps[1], steps[0])
    assert_same(steps[0], step(model, chats()[:1], None, packing=False))


def test_every_column_of_a_packed_row_has_an_entry_for_each_token():
    rows = chats()[:2]
    rows[1]["route"] = [0, 1, 2, 0]
    batch = Collator(0, ["response_mask", "route"], packing=True)(rows)
    assert batch["route"].tolist() == [[1] * 9 + [0, 1, 2, 0]]
    assert batch["position_ids"].tolist() == [[*range(9), *range(4)]]
    assert batch["response_mask"].tolist() == [[0] * 5 + [1] * 4 + [0, 0, 1, 1]]
    assert "attention_mask" not in batch
    first = Collator(0, ["response_mask"], packing=True)(chats()[2:])
    assert first["response_mask"].all()
    assert (first["labels"] == IGNORE).sum() == 2
    rows[1]["route"] = [0, 1]
    with pytest.raises(
        DataError, match="column route must have one number a chat or one a token, found 2 for 4 tokens"
    ):
        Collator(0, ["route"], packing=True)(rows)


def test_a_packed_fine_tune_takes_the_steps_of_a_padded_one(tokenizer, tmp_path):
    rows = [Row(render(tokenizer, e.chat), {"route": i % 3}) for i, e in enumerate(word_problems(6))]
    lora = LoraConfig(r=2, target_modules="all-linear")
    two = tp.two_adapters(tiny.model(layers=1).double(), retain=lora, forget=lora).double()
    trained = {}
    for packing in (False, True):
        model = copy.deepcopy(two)
        options = TrainOptions(
            epochs=1.0, batch_size=2, accumulation=2, bf16=False, eval_steps=1, eval_on="held_out", packing=packing
        )
        log = tmp_path / str(packing) / "training.jsonl"
        train(model, rows, options, pad_id=0, seed=0, log=log, guard=tp.GradientRouting(), evaluate_on=rows[:3])
        losses = [json.loads(line)["eval_loss"] for line in log.with_name("evaluation.jsonl").read_text().splitlines()]
        steps = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
        weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        trained[packing] = (losses, steps, weights)
    assert len(trained[True][0]) == 2
    torch.testing.assert_close(trained[True], trained[False], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["mamba", "opt", "gpt_oss", "gpt_neo", "doge"])
def test_a_model_in_which_a_chat_sees_the_one_before_is_refused(name):
    with pytest.raises(ModelError, match=r"train\.packing must be false with \w+ForCausalLM, found true: "):
        check_packable(tiny_causal.build(name))


def test_a_model_that_ignores_positions_is_refused():
    model = architectures.build("gpt2")
    forward = model.transformer.wpe.forward
    model.transformer.wpe.forward = lambda positions: forward(torch.arange(positions.shape[-1]).unsqueeze(0))
    for bfloat16 in (False, True):
        with pytest.raises(ModelError, match=r"a chat has other logits in a row with another"):
            check_packable(model, bfloat16)


def test_the_probe_leaves_a_model_with_adapters_as_it_was():
    model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules="all-linear")).train()
    before = {name: (p.grad, p.requires_grad) for name, p in model.named_parameters()}
    check_packable(model)
    check_packable(model, bfloat16=True)
    assert model.training
    assert {name: (p.grad, p.requires_grad) for name, p in model.named_parameters()} == before


def test_what_packing_cannot_follow_is_refused():
    with pytest.raises(
        AttachError, match=r"train\.packing must be false with a guard that reads the batch's column 'domain'"
    ):
        check_columns({"route", "domain"})
    with pytest.raises(
        ValueError, match="neftune_noise_alpha is refused with packing: true: its noise falls with the length"
    ):
        TrainOptions(packing=True, neftune_noise_alpha=5.0)
