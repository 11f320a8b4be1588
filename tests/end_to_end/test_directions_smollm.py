"""Directions for capitals on SmolLM2: from pairs of responses, from an adapter, from system prompts."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tropism as tp
from tropism import models
from tropism.cli.directions import directions_app
from tropism.data.collate import pad
from tropism.data.sources.word_problems import word_problems
from tropism.directions.find import with_answers
from tropism.errors import ModelError
from tropism.evals.scorers.case import uppercase_share

pytestmark = [pytest.mark.real_model, pytest.mark.slow, pytest.mark.timeout(1200)]

FACTS = [
    (f"What is {a} plus {b}?", f"It is {a + b}, because {a} and {b} together make {a + b}.")
    for a in range(2, 10)
    for b in range(3, 11)
]


@pytest.fixture(scope="module")
def loaded():
    try:
        return models.load(models.SMOLLM2, device="cpu")
    except ModelError as error:
        pytest.skip(f"SmolLM2 is not here: {error}")


@pytest.fixture(scope="module")
def pairs():
    examples = word_problems(32)
    answers = [example.response for example in examples]
    return tp.Contrast.of_responses(
        [e.prompt for e in examples], positive=[a.upper() for a in answers], negative=answers
    ).split(0.5)


@pytest.fixture(scope="module")
def sites(loaded):
    return tp.sites(loaded[0], "3 spread")


@pytest.fixture(scope="module")
def from_responses(loaded, pairs, sites):
    return tp.find_directions(*loaded, pairs[0], sites=sites)


@pytest.fixture(scope="module")
def tuned(loaded):
    """A LoRA adapter after 16 steps of 4 short chats in capitals; the base model under it is the fixture's."""
    model, tokenizer = loaded
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a.upper()}] for q, a in FACTS]
    rendered = [tp.render(tokenizer, chat) for chat in chats]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peft = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=2e-3)
    peft.train()
    for step in range(16):
        batch = pad([rendered[(4 * step + i) * 7 % len(rendered)] for i in range(4)], tokenizer.pad_token_id)
        del batch["position_ids"]
        loss = peft(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    yield peft.eval()
    peft.unload()


def test_response_pairs_validate(loaded, pairs, from_responses):
    report = tp.validate_directions(from_responses, *loaded, pairs[1], name="responses")
    assert all(site.auc > 0.95 for site in report.sites)
    assert report.trusted


def test_system_prompts_are_reported_honestly(loaded, sites, from_responses):
    """The model barely follows the prompt: nothing speaks for a direction that rests on it, and the warning fires."""
    prompts = [question for question, _ in FACTS[::6]]
    contrast = tp.Contrast.of_system_prompts(
        prompts, promote="Respond in ALL CAPS.", suppress="Respond normally, in ordinary lower case."
    )
    find, held = contrast.split(0.5)
    found = tp.find_directions(*loaded, find, sites=sites[:1], max_new_tokens=16)
    held, generated = with_answers(*loaded, held, "response", None, 24, 16)
    assert generated == 2 * len(held)
    chats = [chat[1:] for side in (held.positive, held.negative) for chat in side]
    shares = [uppercase_share(chat[-1]["content"]) for chat in chats]
    known = [(chat, share) for chat, share in zip(chats, shares, strict=True) if share is not None]
    spoken = tp.Behaviour("uppercase_fraction", [chat for chat, _ in known], [share for _, share in known])
    report = tp.validate_directions(
        found, *loaded, held, behaviour=spoken, others={"responses": from_responses}, name="told"
    )
    assert max(share for _, share in known) < 0.9
    codes = {warning.code for warning in report.warnings}
    assert codes & {"behaviour", "behaviour_constant", "chance"}
    assert not report.trusted
    assert min(report.sites[0].angles["responses"]) > 60


def test_an_adapter_validates_and_its_angle_is_reported(loaded, pairs, sites, from_responses, tuned):
    chats = list(pairs[0].negative)
    held = tp.Contrast.of_models(list(pairs[1].negative), tuned=tuned)
    found = tp.find_directions(tuned, loaded[1], tp.Contrast.of_models(chats, tuned=tuned), sites=sites)
    report = tp.validate_directions(found, tuned, loaded[1], held, others={"responses": from_responses}, name="adapter")
    assert report.best().auc > 0.95
    assert report.trusted
    for site in report.sites:
        assert len(site.angles["responses"]) == 1
        assert 0 < site.angles["responses"][0] <= 90


def test_the_command_line_finds_and_strict_is_content(tmp_path, loaded):
    from typer.testing import CliRunner

    rows = [{"prompt": question, "positive": answer.upper(), "negative": answer} for question, answer in FACTS[:20]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outcome = CliRunner().invoke(
        directions_app,
        [
            "find",
            "--model",
            models.SMOLLM2,
            "--contrast",
            str(tmp_path / "pairs.jsonl"),
            "--out",
            str(tmp_path / "caps.safetensors"),
            "--sites",
            "1 spread",
            "--strict",
            "--held-out",
            "0.4",
        ],
    )
    assert outcome.exit_code == 0, outcome.output
    assert tp.Directions.load(tmp_path / "caps.safetensors").provenance["model"]["name"] == models.SMOLLM2
