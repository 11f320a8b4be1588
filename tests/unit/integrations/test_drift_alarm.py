"""The alarm's reading is the definition's, it stops past its limit, and what it keeps are the last good weights."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import tiny
import trainers
import tropism as tp
from tropism.errors import UsageError
from tropism.evals.scorers.base import Score

SITES = (tp.Site(1), tp.Site(2))
CHATS = [
    ({"role": "user", "content": f"{a} + 1?"}, {"role": "assistant", "content": f"It is {a + 1}" + "." * (a % 3)})
    for a in range(5)
]


def directions(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tp.Directions({site: torch.randn(32, generator=generator) for site in SITES})


def means(model):
    """One forward pass per chat."""
    found = {site: [] for site in SITES}
    model.eval()
    for chat in CHATS:
        row = tp.render(tiny.tokenizer(), chat)
        with torch.no_grad(), tp.capture(model, list(SITES)) as held:
            model(input_ids=torch.tensor([row.input_ids]))
        for site in SITES:
            found[site].append(held[site][0, row.positions["response"]].double().mean(dim=0))
    model.train()
    return {site: torch.stack(rows).mean(dim=0) for site, rows in found.items()}


class Always:
    """Finds the trait in every answer."""

    def score(self, sample):
        return Score(1.0)


class Push(trainers.TrainerCallback):
    """Moves the adapter further at every step, and remembers what it was."""

    def __init__(self):
        self.kept = []

    def on_step_begin(self, args, state, control, model=None, **_):
        self.kept.append({n: p.detach().clone() for n, p in model.named_parameters() if "lora_B" in n})

    def on_optimizer_step(self, args, state, control, model=None, **_):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                generator = torch.Generator().manual_seed(len(name))
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def trained(tmp_path, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(tiny.model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    before = means(model)
    alarm = tp.DriftAlarm(CHATS, tokenizer=tiny.tokenizer(), every=1, **options)
    push = Push()
    settings = trainers.settings(tmp_path, 4, max_steps=6, learning_rate=1e-8)
    trainer = trainers.hf_trainer(model, trainers.dataset(4), settings)
    trainer.add_callback(push)
    trainer.add_callback(alarm)
    trainer.train()
    return model, before, alarm, push


@pytest.mark.filterwarnings("ignore")
def test_it_reads_by_definition_stops_past_the_limit_and_keeps_the_last_good_weights(tmp_path):
    d = directions()
    model, before, free, _ = trained(tmp_path / "free", directions=d, limit=1e9)
    after = means(model)
    exact = sum(
        float((after[s] - before[s]) @ d.vectors[s][0].double() / d.vectors[s][0].double().square().sum())
        for s in SITES
    )
    assert free.readings[0] == (0, pytest.approx(0.0, abs=1e-9))
    assert free.readings[-1] == (6, pytest.approx(exact / 2, rel=1e-5))
    assert not free.reason
    # Turned so that the furthest reading comes after the first: there the alarm is to go off.
    values = [value for _, value in free.readings]
    sign = max((1, -1), key=lambda sign: max(sign * value for value in values))
    worst = [sign * value for value in values]
    last = worst.index(max(worst))
    limit = (max(worst[:last]) + worst[last]) / 2
    flipped = tp.Directions({site: sign * rows for site, rows in d.vectors.items()})
    _, _, alarm, push = trained(tmp_path / "stopped", directions=flipped, limit=limit)
    assert [step for step, _ in alarm.readings] == list(range(last + 1))
    assert f"at step {last}, over the limit" in alarm.reason
    held = PeftModel.from_pretrained(tiny.model(), str(alarm.last_good))
    for name, parameter in held.named_parameters():
        if "lora_B" in name:
            torch.testing.assert_close(parameter, push.kept[last - 1][name], atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_a_rate_is_the_mean_score_of_own_answers_and_one_that_is_high_from_the_start_keeps_nothing(tmp_path):
    _, _, alarm, _ = trained(tmp_path, scorer=Always(), limit=0.5)
    assert alarm.readings == [(0, 1.0)]
    assert alarm.last_good is None
    assert "rate 1.00 at step 0" in alarm.reason


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one of the two"),
        ({"directions": directions(), "limit": float("nan")}, "must be finite"),
        ({"directions": directions(), "every": 0}, "at least 1"),
    ],
)
def test_wrong_calls(options, said):
    with pytest.raises(UsageError, match=said):
        tp.DriftAlarm(CHATS, **options)
