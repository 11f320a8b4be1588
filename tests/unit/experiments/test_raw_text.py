"""Raw text, rows `{"text"}`: trained on, directions found on it, probed; every token is learned but the first."""

import json

import pytest
import torch

import tiny
import tiny_experiment
import tropism as tp
from tropism.data import sources
from tropism.data.chats import raw_text
from tropism.evals.scorers.base import Sample
from tropism.evals.scorers.registry import load_scorer
from tropism.experiments.directions import contrast_of
from tropism.experiments.file.experiment import Experiment
from tropism.probes.gradients import collect_gradients
from tropism.probes.projection import projection

TEXTS = ("It was a bright cold day.", "The clocks were striking thirteen.", "Call me Ishmael.", "So it goes.")


def rows(path, name, change=str):
    file = path / name
    texts = [f"{change(text)} {index}" for index in range(3) for text in TEXTS]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def test_directions_and_probes_read_raw_text(tmp_path):
    model, tokenizer = tiny.model().eval(), tiny.tokenizer()
    examples = sources.load(str(rows(tmp_path, "plain.jsonl")))
    loud = sources.load(str(rows(tmp_path, "loud.jsonl", str.upper)))
    chats = [e.content for e in (*loud, *examples)]
    contrast = tp.Contrast.of_labelled(chats, [True] * len(loud) + [False] * len(examples))
    found = tp.find_directions(model, tokenizer, contrast, sites=[tp.Site(1)], positions="response")
    cache = collect_gradients(model, tokenizer, examples, [tp.Site(1)])
    assert list(cache.chats) == [example.id for example in examples]
    read = projection(model, tokenizer, [*loud, *examples], found, positions="response")
    means = read["projection"].to_numpy().reshape(2, -1).mean(axis=1)
    assert means[0] > means[1]
    # By hand, the difference of the sides' means over each text's tokens but the first.
    rendered = [tp.render(tokenizer, chat) for chat in chats]
    with torch.no_grad():
        states = [
            model(torch.tensor([one.input_ids]), output_hidden_states=True).hidden_states[2][0, 1:].double().mean(0)
            for one in rendered
        ]
    by_hand = torch.stack(states[: len(loud)]).mean(0) - torch.stack(states[len(loud) :]).mean(0)
    torch.testing.assert_close(found.vectors[tp.Site(1)][0].double(), by_hand, rtol=1e-4, atol=1e-5)


def test_an_experiment_on_raw_text_finds_its_directions_on_it(tmp_path):
    loud, plain = rows(tmp_path, "loud.jsonl", str.upper), rows(tmp_path, "plain.jsonl")
    file = tiny_experiment.write(
        tmp_path,
        ("train: {source: word_problems, size: 8, transform: uppercase}", f"train: {{source: {loud}}}\n  other: {{source: {plain}}}"),
        ("{of: responses, source: word_problems, positive: uppercase, negative: plain, size: 12}", "{of: data, positive: train, negative: other}"),
        ("  plain: {data: {transform: plain}}\n", ""), ("seeds: [0, 1]", "seeds: [0]"),
    )  # fmt: skip
    experiment = Experiment.load(file)
    contrast = contrast_of(experiment.directions["caps"].contrast, experiment)
    assert [chat[0]["role"] for chat in contrast.positive] == ["text"] * 12
    results = tp.run(experiment, tmp_path / "out", only=["guarded"])
    assert (results.query("condition == 'guarded'")["n"] == 3).all()


def test_the_loss_of_a_raw_text_is_that_of_its_tokens_but_the_first():
    model, tokenizer = tiny.model().eval(), tiny.tokenizer()
    samples = [Sample(str(i), raw_text(text), "") for i, text in enumerate(TEXTS)]
    scores = load_scorer("response_loss", {"batch_size": 3}).score_all(model, tokenizer, samples)
    for text, score in zip(TEXTS, scores, strict=True):
        ids = torch.tensor(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])
        with torch.no_grad():
            logits = model.double()(ids[None]).logits[0]
        by_hand = torch.nn.functional.cross_entropy(logits[:-1], ids[1:])
        assert score.value == pytest.approx(float(by_hand), rel=1e-5)
        model.float()
    # What a model generated after a raw text is another matter: an empty answer has no loss.
    empty = load_scorer("base_perplexity", {}).score_all(model, tokenizer, samples)
    assert [score.unscored for score in empty] == ["empty response"] * len(TEXTS)
