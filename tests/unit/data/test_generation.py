"""Generation in batches equals one prompt at a time; nothing is truncated; no global seed is touched."""

import pytest
import torch

import tiny
from tropism.data.generation import GenerateOptions, generate
from tropism.data.render import render_prompt
from tropism.errors import DataError

PROMPTS = [
    [{"role": "user", "content": text}] for text in ("hi", "what is this?", "a longer question than the others", "x")
]


def alone(model, tokenizer, chat, tokens):
    ids = render_prompt(tokenizer, chat).input_ids
    out = []
    for _ in range(tokens):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + out])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        out.append(token)
    return tokenizer.decode(out, skip_special_tokens=True)


def test_greedy_generation_in_batches_equals_one_at_a_time(tokenizer):
    model = tiny.model(dtype=torch.float64).eval()
    expected = [alone(model, tokenizer, chat, 12) for chat in PROMPTS]
    for batch_size in (1, 3, 4):
        assert (
            generate(model, tokenizer, PROMPTS, GenerateOptions(max_new_tokens=12, batch_size=batch_size)) == expected
        )


def test_sampling_is_seeded_and_leaves_the_callers_generator_alone(model, tokenizer):
    options = GenerateOptions(max_new_tokens=8, temperature=1.0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = generate(model, tokenizer, PROMPTS, options, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert (
        generate(model, tokenizer, PROMPTS, options, seed=1)
        == first
        != generate(model, tokenizer, PROMPTS, options, seed=2)
    )


def test_training_mode_is_restored(model, tokenizer):
    generate(model.train(), tokenizer, PROMPTS[:1], GenerateOptions(max_new_tokens=1))
    assert model.training


def test_progress_counts_every_prompt(model, tokenizer):
    seen = []
    generate(
        model, tokenizer, PROMPTS, GenerateOptions(max_new_tokens=1, batch_size=3), report=lambda *x: seen.append(x)
    )
    assert seen == [(3, 4), (4, 4)]


def test_a_prompt_that_does_not_fit_is_counted_and_never_truncated(model, tokenizer):
    long = [{"role": "user", "content": "x" * 600}]
    with pytest.raises(DataError, match=r"1 of 2 texts .* longer than the model's context of 512 tokens"):
        generate(model, tokenizer, [PROMPTS[0], long], GenerateOptions(max_new_tokens=4))


def test_every_module_keeps_its_own_mode(model, tokenizer):
    model.train().model.layers[1].eval()
    generate(model, tokenizer, PROMPTS[:1], GenerateOptions(max_new_tokens=1))
    assert model.training
    assert not model.model.layers[1].training


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_of_sequence(tokenizer):
    model = tiny.model(dtype=torch.float64).eval()
    options = GenerateOptions(max_new_tokens=12)
    expected = generate(model, tokenizer, PROMPTS, options)
    tokenizer.pad_token = None
    assert generate(model, tokenizer, PROMPTS, options) == expected
