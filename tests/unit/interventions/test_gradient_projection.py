"""Gradient projection's options and readings. (Against hand edits: test_guards_architectures.)"""

import pytest
import torch

import architectures
import tiny
import tropism as tp
import unchecked
from hand_edits import assert_same, gradients
from tropism.errors import GuardNotInForce, UsageError

SITE = tp.Site(1)


@pytest.fixture
def model():
    return architectures.build("llama")


@pytest.fixture
def directions(generator):
    return tp.Directions({SITE: torch.randn(3, 16, generator=generator)})


def site_gradient(model, batch):
    with tp.capture(model, [SITE]) as acts:
        return torch.autograd.grad(model(**batch).loss, acts[SITE])[0]


def passed_on(model, guard, batch):
    """The gradient that leaves the site downward: what arrives at the block before, were the block the identity."""
    seen = []
    with tp.capture(model, [SITE]) as acts, guard.attach(model) as attachment:
        loss = model(**batch).loss
        acts[SITE].register_hook(lambda g: seen.append(g.clone()))  # runs after the guard's own
        loss.backward()
    return seen[0], attachment


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_what_leaves_the_site(model, directions, strength):
    batch = architectures.batch()
    g = site_gradient(model, batch)
    V = directions.basis(SITE).double()
    found, _ = passed_on(model, tp.GradientProjection(directions, strength=strength), batch)
    torch.testing.assert_close(found, g - strength * g @ V.T @ V)
    if strength == 1:
        assert (found @ V.T).abs().max() < 1e-6 * g.abs().max()


def test_response_positions_only(model, directions):
    batch = architectures.batch()
    on = batch["labels"] != -100
    g = site_gradient(model, batch)
    V = directions.basis(SITE).double()
    found, _ = passed_on(model, tp.GradientProjection(directions, positions="response"), batch)
    assert torch.equal(found[~on], g[~on])
    torch.testing.assert_close(found[on], (g - g @ V.T @ V)[on])
    assert (g[~on] @ V.T).abs().max() > 0


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_readings(model, directions, strength):
    batch = architectures.batch()
    g = site_gradient(model, batch)
    V = directions.basis(SITE).double()
    removed = strength * g @ V.T
    after = g - removed @ V
    with tp.GradientProjection(directions, strength=strength).attach(model) as attachment:
        for _ in range(2):
            model(**batch).loss.backward()
        readings = attachment.readings()
        assert attachment.readings() == {}
    name = "guard/gradient_projection/resid_post.1"
    assert readings == {
        f"{name}/share_removed": pytest.approx(float((removed**2).sum() / (g**2).sum()), rel=1e-4),
        f"{name}/cosine_before": pytest.approx(float((g @ V.T).norm() / g.norm()), rel=1e-4),
        f"{name}/cosine_after": pytest.approx(float((after @ V.T).norm() / after.norm()), rel=1e-4, abs=1e-6),
    }


def test_a_gradient_of_zero_has_no_share(model, directions):
    with tp.GradientProjection(directions).attach(model) as attachment:
        (model(**architectures.batch()).loss * 0).backward()
        assert attachment.readings() == {}


def test_linear_in_the_batch_so_accumulation_commutes(model, directions):
    batch = {key: value.repeat(2, 1) for key, value in architectures.batch().items()}
    batch["labels"] = batch["input_ids"]
    with tp.GradientProjection(directions).attach(model):
        _, whole = gradients(model, batch)
        model.zero_grad()
        for row in range(4):
            (model(**{key: value[row : row + 1] for key, value in batch.items()}).loss / 4).backward()
    assert_same(whole, {name: p.grad for name, p in model.named_parameters()}, 1e-12)


def test_it_acts_on_a_model_in_evaluation_mode(model, directions):
    batch = architectures.batch()
    model.eval()
    _, plain = gradients(model, batch)
    with tp.GradientProjection(directions).attach(model):
        _, found = gradients(model, batch)
    assert not torch.equal(plain["model.embed_tokens.weight"], found["model.embed_tokens.weight"])


def test_two_forward_passes_before_one_backward(model, directions):
    """As DPO does: each pass has its own mask, whichever came last."""
    a = architectures.batch()
    b = {**a, "labels": a["input_ids"]}
    guard = tp.GradientProjection(directions, positions="response")
    with guard.attach(model):
        _, of_a = gradients(model, a)
        _, of_b = gradients(model, b)
        model.zero_grad()
        (model(**a).loss + model(**b).loss).backward()
    both = {name: p.grad for name, p in model.named_parameters()}
    assert_same({name: of_a[name] + of_b[name] for name in of_a}, both, 1e-12)


def test_a_backward_pass_after_the_guard_is_gone_is_still_projected(model, directions):
    batch = architectures.batch()
    with tp.GradientProjection(directions).attach(model):
        _, wanted = gradients(model, batch)
    model.zero_grad()
    with tp.GradientProjection(directions).attach(model):
        loss = model(**batch).loss
    loss.backward()
    assert_same(wanted, {name: p.grad for name, p in model.named_parameters()}, 0)


def test_a_site_below_which_nothing_is_trained(model, directions):
    for parameter in (*model.model.embed_tokens.parameters(), *model.model.layers[:2].parameters()):
        parameter.requires_grad_(False)
    with (
        pytest.raises(
            GuardNotInForce, match="no gradient can reach gradient projection at resid_post.1.*drop the site"
        ),
        tp.GradientProjection(directions).attach(model),
    ):
        model(**architectures.batch())


def test_a_block_that_swallows_the_gradient(model, directions):
    """A custom backward above the site (or a detach there) is seen at the next pass, optimizer step or exit."""
    block = model.model.layers[2]
    original = block.forward
    block.forward = lambda h, *args, **kwargs: original(h.detach(), *args, **kwargs)
    batch = architectures.batch()
    message = "reached the model's output and not gradient projection at resid_post.1"
    with pytest.raises(GuardNotInForce, match=message), tp.GradientProjection(directions).attach(model):
        model(**batch).loss.backward()
        model(**batch)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(GuardNotInForce, match=message), tp.GradientProjection(directions).attach(model):
        model(**batch).loss.backward()
        optimizer.step()
    attachment = tp.GradientProjection(directions).attach(model).__enter__()
    model(**batch).loss.backward()
    with pytest.raises(GuardNotInForce, match=message):
        attachment.__exit__(None, None, None)


def test_passes_without_gradients_are_no_failure(directions):
    model = architectures.build("llama")
    with tp.GradientProjection(directions).attach(model) as attachment:
        with torch.no_grad():
            model(**architectures.batch())  # a reference model's pass, in training mode
        assert attachment.readings() == {}
    with tp.GradientProjection(directions).attach(model):
        model(**architectures.batch())  # a forward pass alone


def test_options_that_no_guard_takes(directions):
    with pytest.raises(UsageError, match=r"GradientProjection.strength must lie in \[0, 1\].*found -0.1"):
        tp.GradientProjection(directions, strength=-0.1)
    with pytest.raises(UsageError, match="GradientProjection.positions must be 'all' or 'response', found 'some'"):
        unchecked.build(tp.GradientProjection, directions, positions="some")


def test_bfloat16_gradients_stay_bfloat16(generator):
    model = tiny.model(dtype=torch.bfloat16)
    d = tp.Directions({SITE: torch.randn(2, 32, generator=generator)})
    with tp.GradientProjection(d).attach(model) as attachment:
        model(**tiny.batch()).loss.backward()
        assert attachment.readings()["guard/gradient_projection/resid_post.1/cosine_after"] < 2e-3
    assert model.model.embed_tokens.weight.grad.dtype == torch.bfloat16
