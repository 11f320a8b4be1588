"""Conditions, placebo calibration, projection, predicted and realised shift, and pressure over training."""

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
import tropism as tp
from gradient_cases import chats
from tropism.data.chats import Example
from tropism.errors import DataError, DirectionsMismatch, SpecError, UsageError
from tropism.probes.calibrate import calibrate_placebo
from tropism.probes.conditions import elicitation_grid, shown, with_system_prompts
from tropism.probes.projection import projection
from tropism.probes.shift import agreement, predicted_and_realised_shift
from tropism.probes.training_pressure import PressureLog

SITE = tp.Site(1)


@pytest.fixture
def d(generator):
    return tp.Directions({SITE: torch.randn(32, generator=generator)})


def test_conditions_differ_in_the_system_prompt_alone(tokenizer):
    made = with_system_prompts(
        tokenizer, chats(3), {"neutral": None, "inoculation": "Be loud.", "placebo": "Be brief."}
    )
    assert [example.id for example in made["placebo"]] == ["0", "1", "2"]
    assert made["inoculation"][1].chat[0] == {"role": "system", "content": "Be loud."}
    assert list(made["inoculation"][1].chat[1:]) == chats(3)[1] == list(made["neutral"][1].chat)
    table = shown(tokenizer, made)
    assert table["condition"].tolist() == ["neutral", "inoculation", "placebo"]
    assert "Be loud." in table["text"][1]
    assert tokenizer.decode([int(i) for i in table["input_ids"][1].split()]) == table["text"][1]
    assert "no" + "<|im_end|>" not in table["text"][0]  # the prompt, not the response


def test_conditions_that_render_alike_are_refused(tokenizer):
    with pytest.raises(SpecError, match="conditions 'a' and 'b' render to the same tokens"):
        with_system_prompts(tokenizer, chats(2), {"a": "Be loud.", "b": "Be loud."})
    # a template that puts in a default system prompt where none is given, as SmolLM2's does
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        + tokenizer.chat_template
    )
    with pytest.raises(SpecError, match="this chat template may add one of its own"):
        with_system_prompts(tokenizer, chats(2), {"neutral": None, "placebo": "Be kind."})
    with pytest.raises(DataError, match="at least one chat"):
        with_system_prompts(tokenizer, [], {"neutral": None})


def test_elicitation_grid_has_a_dozen_different_prompts():
    grid = elicitation_grid("You always respond in ALL CAPS.")
    assert len(grid) == len(set(grid.values())) == 12
    assert grid["none"] is None
    assert grid["training prompt"] == "You always respond in ALL CAPS."
    assert elicitation_grid("x y.", negation="Never.")["negation"] == "Never."


def test_calibration_picks_the_candidate_closest_in_loss(model, tokenizer):
    candidates = ["Be brief.", "a rather long prompt about nothing at all", "Zz."]
    found = calibrate_placebo(model, tokenizer, chats(), "Be loud.", candidates, batch_size=3)
    losses = {}
    for prompt in ["Be loud.", *candidates]:
        made = with_system_prompts(tokenizer, chats(), {"c": prompt})["c"]
        losses[prompt] = float(tp.collect_gradients(model, tokenizer, made, [SITE]).losses.mean())
    assert found.table["mean_loss"].tolist() == pytest.approx([losses[p] for p in found.table["prompt"]], rel=1e-5)
    assert found.placebo == min(candidates, key=lambda p: abs(losses[p] - losses["Be loud."]))
    assert found.table["gap"][1:].is_monotonic_increasing
    assert found.table["role"].tolist() == ["inoculation", *["candidate"] * 3]
    with pytest.raises(UsageError, match="different prompts, at least one, found"):
        calibrate_placebo(model, tokenizer, chats(), "Be loud.", [])
    with pytest.raises(SpecError, match="render to the same tokens"):
        calibrate_placebo(model, tokenizer, chats(), "Be loud.", ["Be loud."])


@pytest.mark.parametrize("positions", ["last_prompt", "response", "all"])
def test_projection_by_hand(model, tokenizer, d, positions):
    table = projection(model, tokenizer, chats(), d, positions, batch_size=3)
    v = d.vectors[SITE][0] / d.vectors[SITE][0].norm()
    kept = []
    handle = tp.decoder_layers(model)[1].register_forward_hook(lambda _m, _a, out: kept.append(out))
    for i, chat in enumerate(chats()):
        row = tp.render(tokenizer, chat)
        with torch.no_grad():
            model(input_ids=torch.tensor([row.input_ids]))
        wanted = float((kept[-1][0, row.positions[positions]] @ v).mean())
        assert table.projection[i] == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    handle.remove()


def test_projection_takes_prompts_and_names_what_it_cannot_take(model, tokenizer, d, generator):
    prompt = Example("p", ({"role": "user", "content": "hi"},))
    assert projection(model, tokenizer, [prompt], d).chat.tolist() == ["p"]
    with pytest.raises(DataError, match="chat 'p' has no token at positions='response'"):
        projection(model, tokenizer, [prompt], d, "response")
    with pytest.raises(UsageError, match="one direction a site, found 2"):
        projection(model, tokenizer, [prompt], tp.Directions({SITE: torch.randn((2, 32), generator=generator)}))
    with pytest.raises(DirectionsMismatch, match="8 wide"):
        projection(model, tokenizer, [prompt], tp.Directions({SITE: torch.ones(8)}))
    with pytest.raises(DataError, match="at least one chat"):
        projection(model, tokenizer, [], d)


def test_the_realised_shift_is_that_of_a_real_step_and_follows_pressure(model, tokenizer, d):
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    table = predicted_and_realised_shift(adapted, tokenizer, chats(), d, learning_rate=1e-2)
    assert list(table.columns) == ["chat", "site", "predicted", "realised"]
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters())
    assert all(p.grad is None for p in adapted.parameters())
    # an ordinary SGD step on chat 5
    start = projection(adapted, tokenizer, chats(), d, "response").projection[5]
    row = tp.render(tokenizer, chats()[5])
    ids = torch.tensor([row.input_ids])
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    adapted.eval()
    adapted(input_ids=ids, labels=torch.where(torch.tensor([row.response_mask]), ids, -100)).loss.backward()
    optimizer.step()
    moved = projection(adapted, tokenizer, chats(), d, "response").projection[5] - start
    assert table.realised[5] == pytest.approx(moved / 1e-2, rel=1e-2)


def test_pressure_predicts_the_trend_of_the_shift(model, tokenizer):
    """Over chats and directions, all parameters trainable: positively, and far from perfectly, correlated."""
    tables = []
    for seed in range(6):
        v = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        d = tp.Directions({SITE: v, tp.Site(2): v})
        tables.append(predicted_and_realised_shift(model, tokenizer, chats(), d, "all"))
    found = agreement(pd.concat(tables))
    assert (found.r > 0.3).all()
    assert (found.r < 0.95).all()
    assert (found.same_sign > 0.5).all()


def test_a_model_without_trainable_parameters_has_no_shift(model, tokenizer, d):
    with pytest.raises(UsageError, match="no trainable parameters to step"):
        predicted_and_realised_shift(model.requires_grad_(False), tokenizer, chats(), d)


def test_pressure_is_logged_every_n_steps(model, tokenizer, d):
    log = PressureLog(tokenizer, chats(4), d, every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    log.measure(model, 0)
    for step in range(1, 5):
        model.train()
        optimizer.zero_grad()
        row = tp.render(tokenizer, chats()[5])
        ids = torch.tensor([row.input_ids])
        model(input_ids=ids, labels=ids).loss.backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        readings = log.after_step(model, step)
        assert (readings is not None) == (step % 2 == 0)
        assert model.training
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
        optimizer.step()
    assert log.table["step"].tolist() == [0, 2, 4]
    assert set(readings) == {f"{m}/resid_post.1" for m in ("pressure", "cosine", "gradient_norm", "loss")}
    cache = tp.collect_gradients(model, tokenizer, chats(4), [SITE])
    assert log.measure(model, 5)["pressure/resid_post.1"] == pytest.approx(
        float(tp.pressure(cache, d).pressure.mean()), rel=1e-5
    )
    with pytest.raises(UsageError, match="every must be at least 1, found 0"):
        PressureLog(tokenizer, chats(), d, every=0)
    with pytest.raises(DataError, match="at least one chat"):
        PressureLog(tokenizer, [], d)


def test_the_log_renders_with_the_templates_options(model, d):
    role = "{{ message['role'] }}"
    tokenizer = tiny.tokenizer(tiny.TEMPLATE.replace(role, role + "{{ '!' if shout and message['role'] == 'user' }}"))
    said = {"template_kwargs": {"shout": True}}
    log = PressureLog(tokenizer, chats(4), d, **said)
    cache = tp.collect_gradients(model, tokenizer, chats(4), [SITE], **said)
    loss = log.measure(model, 0)["loss/resid_post.1"]
    assert loss == pytest.approx(float(tp.pressure(cache, d).loss.mean()), rel=1e-6)
    assert loss != pytest.approx(PressureLog(tokenizer, chats(4), d).measure(model, 0)["loss/resid_post.1"], rel=1e-6)
