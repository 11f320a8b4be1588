"""Generation in batches equals one prompt at a time; nothing is truncated; no global seed is touched."""

import pytest
import torch
from transformers import LlamaForCausalLM

import tiny
import tiny_causal
from tropism.data import generation
from tropism.data.generation import Answer, GenerateOptions, answers_in_batches, generate, generate_answers, written
from tropism.data.render import render_prompt
from tropism.errors import DataError

GEMMA_LIKE = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
PROMPTS = [
    [{"role": "user", "content": text}] for text in ("hi", "what is this?", "a longer question than the others", "x")
]


@pytest.fixture(autouse=True)
def llama_is_known(monkeypatch):
    """The tiny Llama was tried before: the probe is a pass more, which no test here may depend on an earlier one for."""
    monkeypatch.setattr(generation, "_IN_BATCHES", {LlamaForCausalLM: True})


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


def test_equal_prompts_are_answered_once_and_drawn_anew_each_time(tokenizer, monkeypatch):
    model = tiny.model(dtype=torch.float64).eval()
    several = [PROMPTS[place] for place in (2, 0, 2, 1, 0, 2)]
    expected = [alone(model, tokenizer, chat, 6) for chat in several]
    answered, write = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **given: answered.append(len(given["input_ids"])) or write(**given))
    seen = []
    greedy = GenerateOptions(max_new_tokens=6, batch_size=2)
    assert generate(model, tokenizer, several, greedy, report=lambda *at: seen.append(at)) == expected
    assert sum(answered) == 3
    assert seen[-1] == (6, 6)
    answered.clear()
    generate(model, tokenizer, several, GenerateOptions(max_new_tokens=6, temperature=1.0))
    assert sum(answered) == 6


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


def of_type(name, seed=0):
    model = tiny_causal.build(name, seed).eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.resize_token_embeddings(tiny.VOCABULARY, mean_resizing=False)
    return model


@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[0], [{"role": "user", "content": "ok"}]]])
def test_a_model_whose_rows_disturb_one_another_answers_one_prompt_at_a_time(tokenizer, caplog, monkeypatch, prompts):
    """RWKV reads no attention mask, and its cached step mixes the rows of a batch, also of one length."""
    model = of_type("rwkv", seed=9)
    options = GenerateOptions(max_new_tokens=6, batch_size=4)
    one_by_one = [generate(model, tokenizer, [prompt], options)[0] for prompt in prompts]
    monkeypatch.setattr(generation, "_IN_BATCHES", {})
    generation._say_once.cache_clear()
    assert generate(model, tokenizer, prompts, options) == one_by_one
    assert "so prompts are answered one at a time" in caplog.text
    monkeypatch.setattr(generation, "_IN_BATCHES", {type(model): True})  # as it was before
    assert generate(model, tokenizer, prompts, options) != one_by_one


@pytest.mark.parametrize("name", ["gpt2", "mamba", "gptj", "bloom", "gemma3_text", "opt", "qwen2_moe"])
def test_models_that_hide_padding_are_batched(tokenizer, monkeypatch, name):
    monkeypatch.setattr(generation, "_IN_BATCHES", {})
    model = of_type(name)
    generate(model, tokenizer, PROMPTS[:2], GenerateOptions(max_new_tokens=1, batch_size=4))
    assert generation._IN_BATCHES[type(model)]


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


def always(model, tokenizer, text):
    """The model made to write a text and then to repeat its last token; returns a list that grows by each step."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    steps = []

    def write(_module, _arguments, output):
        output.logits[:] = 0
        output.logits[:, -1, ids[min(len(steps), len(ids) - 1)]] = 1
        steps.append(1)

    model.register_forward_hook(write)
    return steps


@pytest.mark.parametrize("as_token", [True, False])
def test_generation_ends_where_the_template_ends_a_turn(as_token):
    """Gemma's end of turn is neither its tokenizer's end of sequence nor, in some checkpoints, in its config."""
    tokenizer, model = tiny.tokenizer(GEMMA_LIKE), tiny.model().eval()
    if as_token:
        tokenizer.add_tokens(["<end_of_turn>"], special_tokens=True)
        model.resize_token_embeddings(len(tokenizer) + 1)
    steps = always(model, tokenizer, "yes<end_of_turn>")
    assert generate(model, tokenizer, PROMPTS[:2], GenerateOptions(max_new_tokens=60, batch_size=2)) == ["yes", "yes"]
    assert len(steps) == len(tokenizer("yes<end_of_turn>", add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("as_token", [True, False])
def test_an_answer_says_whether_it_ended_or_was_cut_off(as_token):
    tokenizer = tiny.tokenizer(GEMMA_LIKE)
    if as_token:
        tokenizer.add_tokens(["<end_of_turn>"], special_tokens=True)
    whole = len(tokenizer("yes<end_of_turn>", add_special_tokens=False)["input_ids"])
    # Two cut short; one that ends with the very last token that it may have; one that has room to spare.
    for tokens, answer in ((2, Answer("ye", False)), (whole, Answer("yes", True)), (whole + 9, Answer("yes", True))):
        model = tiny.model().eval()
        model.resize_token_embeddings(len(tokenizer) + 1)
        always(model, tokenizer, "yes<end_of_turn>")
        options = GenerateOptions(max_new_tokens=tokens, batch_size=2)
        assert generate_answers(model, tokenizer, PROMPTS[:2], options) == [answer, answer]


def test_batches_that_are_shared_out_are_the_batches_of_one_process(model, tokenizer, monkeypatch):
    prompts = [*PROMPTS, PROMPTS[0]]  # one is asked twice, and answered once
    options = GenerateOptions(max_new_tokens=4, batch_size=2)
    asked = []
    inner = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: asked.append(given.get("input_ids")) or inner(**given))
    expected = generate_answers(model, tokenizer, prompts, options)
    alone = [ids.tolist() for ids in asked[-(len(PROMPTS) + 1) // 2 :]]
    asked.clear()
    parts = [
        answers_in_batches(model, tokenizer, prompts, options, lambda number, rank=rank: number % 2 == rank)
        for rank in range(2)
    ]
    assert all(parts)
    assert not parts[0].keys() & parts[1].keys()
    assert {**parts[0], **parts[1]} == dict(enumerate(expected))
    assert sorted(ids.tolist() for ids in asked) == sorted(alone)
    with pytest.raises(ValueError, match="cannot be shared out"):
        answers_in_batches(model, tokenizer, prompts, GenerateOptions(temperature=1.0), bool)


def test_a_full_stop_is_no_end_of_turn():
    tokenizer = tiny.tokenizer("{% for m in messages %}{{ m.content }}. {% endfor %}")
    model = tiny.model().eval()
    always(model, tokenizer, "a.b")
    assert generate(model, tokenizer, PROMPTS[:1], GenerateOptions(max_new_tokens=5)) == ["a.bbb"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 5.0),
        ("no_repeat_ngram_size", 1),
        ("num_beams", 3),
        ("forced_eos_token_id", 2),
        ("min_p", 0.9),
    ],
)
def test_tokens_are_chosen_as_the_options_say_whatever_the_models_generation_config_says(
    model, tokenizer, caplog, name, value
):
    options = GenerateOptions(max_new_tokens=12, temperature=1.0 if name == "min_p" else 0.0)
    expected = generate(model, tokenizer, PROMPTS[:2], options)
    own = model.generation_config
    setattr(own, name, value)
    said = own.to_dict()
    caplog.set_level("WARNING", logger="tropism")
    assert generate(model, tokenizer, PROMPTS[:2], options) == expected
    assert f"{name}={value}" in caplog.text
    assert model.generation_config is own
    assert own.to_dict() == said


def test_tokens_that_the_model_never_says_are_not_said(model, tokenizer):
    options = GenerateOptions(max_new_tokens=8)
    plain = generate(model, tokenizer, PROMPTS[:1], options)
    model.generation_config.suppress_tokens = [*range(3, 200)]
    assert generate(model, tokenizer, PROMPTS[:1], options) != plain


def test_marks_of_thinking_stay_where_they_are_special_tokens():
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "[TOOL]"]})
    ids = tokenizer("[THINK]9? No.[/THINK][TOOL]It is 8 , yes .<|im_end|><|endoftext|>").input_ids
    assert written(tokenizer, ids) == "[THINK]9? No.[/THINK]It is 8 , yes ."


def test_a_token_without_an_embedding_is_refused_by_name(model):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["[X1]", "[X2]"])
    with pytest.raises(DataError, match=r"the token '\[X2\]', number 260, and the model has embeddings of 260 tokens"):
        generate(model, tokenizer, [[{"role": "user", "content": "a [X2]"}]], GenerateOptions(max_new_tokens=1))
