"""What is measured of a routed model: modes, the forget scale, prefixes, relearning."""

import pytest
import torch

import routing_oracle as oracle
import tiny
from tropism.data.generation import GenerateOptions
from tropism.data.render import render
from tropism.errors import DataError, RunFailed
from tropism.interventions.routing_modes import MODES, ablation_mode
from tropism.studies.routing.measure import (
    bos_prompt,
    forget_scale_curve,
    measure_modes,
    prefix_prompt,
    relearn,
    responses_by_mode,
)

CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]


def loss(model):
    with torch.no_grad():
        return {"loss": float(model(**tiny.batch()).loss)}


def test_each_mode_is_measured_in_itself():
    model = oracle.model().eval()
    table = measure_modes(model, lambda: loss(model))
    assert table["mode"].tolist() == list(MODES)
    for mode, value in zip(table["mode"], table["value"], strict=True):
        with ablation_mode(model, mode):
            assert value == loss(model)["loss"]
    assert table["value"].nunique() == 3


def test_the_forget_scale_runs_from_forget_ablated_to_full():
    model = oracle.model().eval()
    curve = forget_scale_curve(model, lambda: loss(model), scales=(0.0, 0.5, 1.0))
    modes = measure_modes(model, lambda: loss(model)).set_index("mode")["value"]
    assert curve["scale"].tolist() == [0.0, 0.5, 1.0]
    assert curve["value"].iloc[0] == modes["forget_ablated"]
    assert curve["value"].iloc[-1] == modes["full"]


def test_responses_in_every_mode_from_chat_bos_and_prefix(tokenizer):
    model = oracle.model(dtype=torch.float32)
    prefix = prefix_prompt(tokenizer, render(tokenizer, CHAT), 4)
    found = responses_by_mode(model, tokenizer, [bos_prompt(tokenizer), prefix], GenerateOptions(max_new_tokens=6))
    assert list(found) == list(MODES)
    assert all(len(texts) == 2 for texts in found.values())
    assert not any("Good" in texts[1] for texts in found.values())  # the continuation, without its prefix
    assert model.training


def test_a_prefix_ends_inside_the_response(tokenizer):
    rendered = render(tokenizer, CHAT)
    prefix = prefix_prompt(tokenizer, rendered, 4)
    assert prefix.text.endswith("assistant\nGood")
    assert prefix.input_ids == rendered.input_ids[: len(prefix)]
    with pytest.raises(DataError, match=r"fewer than the response has \(10\), found 10"):
        prefix_prompt(tokenizer, rendered, 10)
    with pytest.raises(DataError, match="at least 1"):
        prefix_prompt(tokenizer, rendered, 0)


def test_bos_alone(tokenizer):
    assert bos_prompt(tokenizer).input_ids == [tokenizer.bos_token_id]
    tokenizer.bos_token = None
    with pytest.raises(DataError, match="has no BOS token"):
        bos_prompt(tokenizer)


def retain(model):
    return list(oracle.parameters(model, "retain").values())


def test_relearning_lowers_the_loss_and_leaves_no_trace():
    model = oracle.model(dtype=torch.float32)
    with ablation_mode(model, "forget_ablated"):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        table = relearn(
            model,
            [tiny.batch()] * 8,
            lambda: loss(model),
            parameters=retain(model),
            learning_rate=1e-2,
            at_steps=(0, 2, 8),
        )
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())
    assert model.training
    losses = table[table["metric"] == "loss"].set_index("step")["value"]
    assert losses.index.tolist() == [0, 2, 8]
    assert losses[8] < losses[2] < losses[0]
    assert table[table["metric"] == "train_loss"]["step"].tolist() == [2, 8]


def test_relearning_restores_after_an_error_too():
    model = oracle.model(dtype=torch.float32)
    before = [p.detach().clone() for p in retain(model)]
    with pytest.raises(DataError, match="must last for 4 steps, found 2"):
        relearn(model, [tiny.batch()] * 2, dict, parameters=retain(model), at_steps=(4,))
    with pytest.raises(RunFailed, match="loss of step 2 is"):
        relearn(model, [tiny.batch()] * 4, dict, parameters=retain(model), at_steps=(4,), learning_rate=1e30)
    assert all(torch.equal(b, p) for b, p in zip(before, retain(model), strict=True))
    with pytest.raises(DataError, match="at least one, found 0"):
        relearn(model, [], dict, parameters=[])
