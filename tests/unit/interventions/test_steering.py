"""Steering's options and readings. (Against hand edits: test_guards_architectures.)"""

import pytest
import torch

import tiny
import tropism as tp
from tropism.errors import DirectionsError, UsageError

SITES = [tp.Site(0), tp.Site(1), tp.Site(3)]


@pytest.fixture
def directions(generator):
    return tp.Directions({site: torch.randn(32, generator=generator) * 3 for site in SITES})


def test_what_is_added_is_the_vector_as_found(directions):
    added = tp.Steering(directions, coefficient=-2.0).added()
    assert all(torch.equal(added[site], -2 * directions.vectors[site][0]) for site in SITES)


def test_increments_sum_to_the_last_vector(directions):
    added = tp.Steering(directions, coefficient=2.0, increments=True).added()
    running = torch.zeros(32)
    for site in SITES:
        running = running + added[site]
        torch.testing.assert_close(running, 2 * directions.vectors[site][0])


def test_response_positions_only(directions, model):
    batch = tiny.batch()
    on = batch["labels"] != -100
    site = SITES[0]
    d = tp.Directions({site: directions.vectors[site]})
    with tp.capture(model, [site]) as plain:
        model(**batch)
    with tp.Steering(d, 2.0, positions="response").attach(model) as attachment, tp.capture(model, [site]) as acts:
        model(**batch)
        size = attachment.readings()["guard/steering/resid_post.0/relative_size"]
    moved = (acts[site] - plain[site]).detach()
    assert torch.equal(moved[~on], torch.zeros_like(moved[~on]))
    torch.testing.assert_close(moved[on], (2 * d.vectors[site]).expand(int(on.sum()), 32), atol=1e-5, rtol=1e-5)
    assert size == pytest.approx(float(moved.norm() / plain[site].detach().norm()), rel=1e-4)


def test_the_dtype_is_the_models(directions):
    model = tiny.model(dtype=torch.bfloat16)
    with tp.Steering(directions).attach(model), tp.capture(model, SITES) as acts:
        model(**tiny.batch())
    assert {acts[site].dtype for site in SITES} == {torch.bfloat16}


def test_off_at_evaluation_once_training_has_begun(directions, model):
    batch = tiny.batch()
    plain = model.eval()(**batch).logits
    guard = tp.Steering(directions)
    with guard.attach(model):
        assert not torch.equal(model(**batch).logits, plain)  # attached in evaluation mode: asked for
        model.train()(**batch)
        assert torch.equal(model.eval()(**batch).logits, plain)


def test_what_steering_refuses(directions, generator):
    with pytest.raises(DirectionsError, match="Steering adds one vector a site, found 2 at resid_post.0; choose one"):
        tp.Steering(tp.Directions({tp.Site(0): torch.randn(2, 32, generator=generator)}))
    mixed = tp.Directions({tp.Site(0): torch.ones(4), tp.Site(1, "mlp_out"): torch.ones(4)})
    with pytest.raises(DirectionsError, match="all sites in one stream, found mlp_out, resid_post"):
        tp.Steering(mixed, increments=True)
    with pytest.raises(UsageError, match="Steering.coefficient must be finite, found inf"):
        tp.Steering(directions, coefficient=float("inf"))
