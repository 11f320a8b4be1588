"""Scorers that run a model: against one chat at a time, in float64, by torch's own formulas."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

import tiny
from tropism.data.render import render
from tropism.evals.scorers.base import SCORERS, Sample, Score
from tropism.evals.scorers.registry import load_scorer


def samples():
    prompts = [[{"role": "user", "content": "hi " * n}] for n in (1, 9, 3, 20)]
    prompts.append(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
    )
    return [Sample(str(n), prompt, "yes " * (2 * n + 1)) for n, prompt in enumerate(prompts)]


def tuned(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        return get_peft_model(tiny.model(), config).double()


def log_probabilities(model, tokenizer, sample):
    """Naive: one chat, all logits, float64; the response's tokens and what predicts each."""
    chat = [*sample.prompt, {"role": "assistant", "content": sample.response}]
    rendered = render(tokenizer, chat)
    prompt = tokenizer.apply_chat_template(list(sample.prompt), tokenize=False, add_generation_prompt=True)
    start = len(tokenizer(prompt)["input_ids"])
    stop = max(index for index, on in enumerate(rendered.response_mask) if on) + 1
    ids = torch.tensor([rendered.input_ids])
    with torch.no_grad():
        logits = model.eval()(ids).logits[0].double()
    return ids[0, start:stop], logits[start - 1 : stop - 1].log_softmax(-1)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_response_loss_is_each_chats_own_mean_loss_whatever_the_batch(batch_size):
    model, tokenizer = tiny.model().double(), tiny.tokenizer()
    scores = load_scorer("response_loss", {"batch_size": batch_size}).score_all(model, tokenizer, samples())
    for sample, score in zip(samples(), scores, strict=True):
        ids, logs = log_probabilities(model, tokenizer, sample)
        assert score.value == pytest.approx(float(functional.nll_loss(logs, ids)), rel=1e-5)
        assert score.explanation == f"{len(ids)} tokens"


def test_earlier_turns_of_the_assistant_are_prompt_not_response():
    """The last sample has an assistant turn in its prompt; a mean over both turns would differ."""
    model, tokenizer = tiny.model().double(), tiny.tokenizer()
    last = samples()[-1]
    value = load_scorer("response_loss").score_all(model, tokenizer, [last])[0].value
    ids, logs = log_probabilities(model, tokenizer, last)
    assert len(ids) == len("yes ") * 9 + 1
    assert value == pytest.approx(float(functional.nll_loss(logs, ids)), rel=1e-5)


def test_perplexity_is_under_the_base_model_and_leaves_the_adapter_as_it_was():
    model, tokenizer = tuned(), tiny.tokenizer()
    model.base_model.disable_adapter_layers()
    base = [log_probabilities(model, tokenizer, sample) for sample in samples()]
    model.base_model.enable_adapter_layers()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.train()
    scores = load_scorer("base_perplexity").score_all(model, tokenizer, samples())
    for (ids, logs), score in zip(base, scores, strict=True):
        assert score.value == pytest.approx(float(functional.nll_loss(logs, ids).exp()), rel=1e-5)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(module.training for module in model.modules())


def test_divergence_from_the_base_is_the_mean_over_the_responses_tokens():
    model, tokenizer = tuned(), tiny.tokenizer()
    scores = load_scorer("kl_to_base", {"batch_size": 2}).score_all(model, tokenizer, samples())
    for sample, score in zip(samples(), scores, strict=True):
        _, p = log_probabilities(model, tokenizer, sample)
        with model.disable_adapter():
            _, q = log_probabilities(model, tokenizer, sample)
        expected = functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
        assert score.value == pytest.approx(float(expected), rel=1e-4)
        assert score.value > 0.01


def test_a_model_without_adapters_is_its_own_base():
    scores = load_scorer("kl_to_base").score_all(tiny.model(), tiny.tokenizer(), samples())
    assert [score.value for score in scores] == [0] * 5


def test_response_likelihood_is_the_geometric_mean_of_the_tokens_probabilities():
    model, tokenizer = tiny.model().double(), tiny.tokenizer()
    losses = load_scorer("response_loss").score_all(model, tokenizer, samples())
    found = load_scorer("response_likelihood").score_all(model, tokenizer, samples())
    for one, loss in zip(found, losses, strict=True):
        assert (one.value is None) == (loss.value is None)
        if one.value is not None:
            assert one.value == pytest.approx(math.exp(-loss.value))


@pytest.mark.parametrize("name", ["response_loss", "base_perplexity", "kl_to_base"])
def test_what_cannot_be_scored_is_unscored_and_the_others_are_not_moved(name):
    model, tokenizer = tuned(), tiny.tokenizer()
    prompt = [{"role": "user", "content": "hi"}]
    mixed = [
        Sample("e", prompt, ""),
        Sample("a", prompt, "yes"),
        Sample("l", prompt, "x" * 600),
        Sample("b", prompt, "no"),
    ]
    scores = load_scorer(name).score_all(model, tokenizer, mixed)
    assert scores[0] == Score(None, "empty response")
    assert scores[2].unscored.endswith("tokens, over the model's 512 positions")
    alone = [load_scorer(name).score_all(model, tokenizer, [sample])[0].value for sample in (mixed[1], mixed[3])]
    assert [scores[1].value, scores[3].value] == pytest.approx(alone, rel=1e-5)


def test_a_loss_that_is_not_finite_is_unscored():
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    scores = load_scorer("response_loss").score_all(model, tiny.tokenizer(), samples()[:1])
    assert scores == [Score(None, "the loss is nan")]


def test_no_logits_are_computed_where_no_response_token_is_predicted():
    model, tokenizer, seen = tiny.model(), tiny.tokenizer(), []
    model.lm_head.register_forward_hook(lambda _module, _args, output: seen.append(output.shape))
    load_scorer("response_loss", {"batch_size": 8}).score_all(model, tokenizer, samples())
    tokens = sum(len(log_probabilities(tiny.model(), tokenizer, sample)[0]) for sample in samples())
    assert seen == [(1, tokens, tiny.VOCABULARY)]


def test_scorers_say_which_text_they_score():
    assert SCORERS["response_loss"].text == "reference"
    assert SCORERS["kl_to_base"].text == "reference"
    assert SCORERS["base_perplexity"].text == "generated"


def test_a_token_that_is_never_said_adds_nothing_to_the_divergence():
    model, tokenizer = tuned(), tiny.tokenizer()
    (plain,) = load_scorer("kl_to_base").score_all(model, tokenizer, samples()[:1])
    mask = model.get_output_embeddings().register_forward_hook(
        lambda _module, _args, logits: logits.index_fill(-1, torch.tensor([tiny.VOCABULARY - 1]), -torch.inf)
    )
    (masked,) = load_scorer("kl_to_base").score_all(model, tokenizer, samples()[:1])
    mask.remove()
    assert masked.value == pytest.approx(plain.value, rel=0.2)
    assert masked.value != plain.value
