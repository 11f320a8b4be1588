"""Variance along directions and gradient–subspace cosine, against numpy and one backward pass a chat."""

import numpy as np
import pytest
import torch

import tiny
from tropism.activations.capture import capture
from tropism.data.render import render
from tropism.directions.artifact import Directions
from tropism.errors import DataError, SiteError
from tropism.interventions.ablation import Ablation
from tropism.site import Site
from tropism.studies.concept_ablation.measure import activation_variance, gradient_cosine, inside

SITES = (Site(0), Site(2))
CHATS = [
    [{"role": "user", "content": "q" * n}, {"role": "assistant", "content": text}]
    for n, text in ((1, "yes indeed"), (12, "no"), (4, "it may be so"), (7, "x"))
]


@pytest.fixture
def directions(generator):
    return Directions({site: torch.randn(3, 32, generator=generator) for site in SITES})


def activations(model, tokenizer, chat, positions):
    rendered = render(tokenizer, chat)
    with capture(model, SITES) as acts, torch.no_grad():
        model.eval()(torch.tensor([rendered.input_ids]))
    return {site: acts[site][0, rendered.positions[positions]].double().numpy() for site in SITES}


@pytest.mark.parametrize("positions", ["response", "all", "last_prompt"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_variance_is_the_trace_of_the_projected_covariance(directions, positions, batch_size):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    table = activation_variance(
        model, tokenizer, CHATS, directions, positions=positions, batch_size=batch_size
    ).set_index("site")
    rows = [activations(model, tokenizer, chat, positions) for chat in CHATS]
    for site in SITES:
        stacked = np.concatenate([row[site] for row in rows])
        covariance, V = np.cov(stacked.T), directions.basis(site).double().numpy()
        found = table.loc[str(site)]
        assert found["variance_along"] == pytest.approx(np.trace(V @ covariance @ V.T), rel=1e-5)
        assert found["variance_total"] == pytest.approx(np.trace(covariance), rel=1e-5)
        assert found["share"] == pytest.approx(found["variance_along"] / found["variance_total"])
        assert found["mean_along"] == pytest.approx(np.linalg.norm(V @ stacked.mean(0)), rel=1e-5)
        assert found["null_share"] == 3 / 32
        assert found["tokens"] == len(stacked)


def test_a_large_mean_does_not_drown_the_variance(directions):
    """Massive activations: variance 1 about a mean of 1e6 keeps four digits although float32 has seven."""
    from tropism.studies.concept_ablation.measure import _Moments

    noise = torch.randn(500, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h = (noise + 1e6).float()
    moments, basis = _Moments(3), directions.basis(Site(0))
    for part in h.split(100):
        moments.add(part, basis)
    expected = np.trace(basis.double().numpy() @ np.cov(h.double().numpy().T) @ basis.double().numpy().T)
    assert moments.row(Site(0))["variance_along"] == pytest.approx(expected, rel=1e-6)


def test_cosine_is_that_of_each_chats_own_pooled_gradient(directions):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    table = gradient_cosine(model, tokenizer, CHATS, directions, batch_size=3).set_index("site")
    for site in SITES:
        cosines = []
        for chat in CHATS:
            rendered = render(tokenizer, chat)
            ids, places = torch.tensor([rendered.input_ids]), rendered.positions["response"]
            with capture(model, [site]) as acts:
                logits = model.eval()(ids).logits[0]
                loss = torch.nn.functional.cross_entropy(logits[[p - 1 for p in places]], ids[0, places])
                (g,) = torch.autograd.grad(loss, acts[site])
            pooled = g[0, places].mean(0)
            cosines.append(float((directions.basis(site) @ pooled).norm() / pooled.norm()))
        assert table.loc[str(site), "cosine"] == pytest.approx(np.mean(cosines), rel=1e-4)
        assert table.loc[str(site), "cosine_sd"] == pytest.approx(np.std(cosines, ddof=1), rel=1e-3)
        assert table.loc[str(site), "null_cosine"] == pytest.approx((3 / 32) ** 0.5)
        assert table.loc[str(site), "chats"] == len(CHATS)


def test_a_model_under_ablation_has_no_variance_left_along_the_directions(directions):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    base = inside(model, tokenizer, CHATS, directions)
    with Ablation(directions, evaluation=True).attach(model):
        ablated = activation_variance(model, tokenizer, CHATS, directions)
    assert (ablated["share"] < 1e-8).all()
    assert (base["share"] > 0.01).all()


def test_nothing_to_measure_is_an_error_and_the_model_is_left_as_it_was(directions):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    with pytest.raises(DataError, match="chats must hold at least one chat"):
        activation_variance(model, tokenizer, [], directions)
    with pytest.raises(DataError, match="needs at least two tokens, found 1"):
        activation_variance(model, tokenizer, CHATS[:1], directions, positions="last_prompt")
    with pytest.raises(SiteError):
        activation_variance(model, tokenizer, CHATS, Directions({Site(9): torch.ones(1, 32)}))
    inside(model, tokenizer, CHATS, directions)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
