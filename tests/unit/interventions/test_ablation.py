"""Ablation's modes, origin, positions and strength. (Against hand edits: test_guards_architectures.)"""

import pytest
import torch

import architectures
import tiny
import tropism as tp
import unchecked
from hand_edits import gradients
from tropism.errors import DirectionsError, GuardNotInForce, UsageError

SITE = tp.Site(1)


@pytest.fixture
def directions(generator):
    return tp.Directions({SITE: torch.randn(3, 32, generator=generator)})


def activation(model, guard, batch):
    with guard.attach(model), tp.capture(model, [SITE]) as acts:
        model(**batch)
    return acts[SITE].detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_left_along_the_directions(directions, dtype):
    model, batch = tiny.model(dtype=dtype), tiny.batch()
    V = directions.basis(SITE)
    with tp.capture(model, [SITE]) as plain:
        model(**batch)
    left = (activation(model, tp.Ablation(directions), batch).float() @ V.T).abs().max()
    size = (plain[SITE].float() @ V.T).abs().max()
    assert left < (1e-5 if dtype == torch.float32 else 5e-3) * size
    assert size > 0.5


def test_idempotent(directions, model):
    batch = tiny.batch()
    once = activation(model, tp.Ablation(directions), batch)
    twice = activation(model, tp.Ablation(directions) | tp.Ablation(directions), batch)
    torch.testing.assert_close(once, twice, atol=1e-6, rtol=1e-6)


def test_strength_interpolates_and_zero_is_no_guard(directions, model):
    batch = tiny.batch()
    with tp.capture(model, [SITE]) as plain:
        model(**batch)
    whole = activation(model, tp.Ablation(directions), batch)
    half = activation(model, tp.Ablation(directions, strength=0.5), batch)
    torch.testing.assert_close(half, (whole + plain[SITE].detach()) / 2, atol=1e-6, rtol=1e-5)
    assert torch.equal(activation(model, tp.Ablation(directions, strength=0.0), batch), plain[SITE])


def test_origin_leaves_the_means_component(directions, model):
    batch = tiny.batch()
    means = tp.mean_activations(model.eval(), [batch], [SITE])
    found = activation(model, tp.Ablation(directions, origin=means), batch)
    V = directions.basis(SITE)
    torch.testing.assert_close(found @ V.T, (means[SITE] @ V.T).expand(3, 9, 3), atol=1e-5, rtol=1e-5)
    zero = activation(model, tp.Ablation(directions), batch)
    torch.testing.assert_close(found - found @ V.T @ V, zero, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("given", ["labels", "mask"])
def test_response_positions_only(directions, model, given):
    batch = tiny.batch()
    on = batch["labels"] != -100
    with tp.capture(model, [SITE]) as plain:
        model(**batch)
    whole = activation(model, tp.Ablation(directions), batch)
    if given == "mask":
        del batch["labels"]
        batch["response_mask"] = on.long()
    guard = tp.Ablation(directions, positions="response")
    assert guard.batch_keys == {"response_mask"}
    found = activation(model, guard, batch)
    assert torch.equal(found[~on], plain[SITE][~on])
    torch.testing.assert_close(found[on], whole[on])


def test_two_guards_read_one_mask(directions, model):
    batch = tiny.batch()
    batch["response_mask"] = batch.pop("labels") != -100
    guard = tp.Ablation(directions, positions="response")
    seen = []
    with guard.attach(model), tp.Ablation(directions, positions="response").attach(model):
        handle = model.register_forward_pre_hook(lambda _m, _args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
        model(**batch)
    model(**batch)  # detached: nobody takes it out any more
    handle.remove()
    assert seen == [{"input_ids", "attention_mask"}, {"input_ids", "attention_mask", "response_mask"}]


def test_no_mask_is_said_and_not_guessed(directions, model):
    batch = tiny.batch()
    with (
        pytest.raises(
            GuardNotInForce, match="neither response_mask nor labels; pass response_mask=.*or use positions='all'"
        ),
        tp.Ablation(directions, positions="response").attach(model),
    ):
        model(input_ids=batch["input_ids"])
    with (
        pytest.raises(GuardNotInForce, match=r"marks \[3, 4\] tokens and the activation has \[3, 9\]"),
        tp.Ablation(directions, positions="response").attach(model),
    ):
        model(input_ids=batch["input_ids"], response_mask=torch.ones(3, 4))


def test_share_removed_is_read_and_reset(directions, model):
    batch = tiny.batch()
    with tp.capture(model, [SITE]) as acts, torch.no_grad():
        model(**batch)
    h = acts[SITE]
    share = ((h @ directions.basis(SITE).T) ** 2).sum() / (h**2).sum()
    with tp.Ablation(directions).attach(model) as attachment:
        model(**batch)
        model(**batch)
        readings = attachment.readings()
        assert attachment.readings() == {}
    assert readings == {"guard/ablation/resid_post.1/share_removed": pytest.approx(float(share), rel=1e-5)}


def test_gradients_of_the_forward_mode_are_whole(directions):
    """With `h − detach(c)`, a site's gradient is that of the edited pass, unprojected."""
    model, batch = architectures.build("llama"), architectures.batch()
    d = tp.Directions({SITE: directions.vectors[SITE][:, :16]})
    V = d.basis(SITE).double()
    for mode, along in (("both", False), ("forward", True)):
        seen = []
        with tp.capture(model, [SITE]) as acts, tp.Ablation(d, mode=mode).attach(model):
            loss = model(**batch).loss
            seen = torch.autograd.grad(loss, acts[SITE])[0]
        assert bool((seen @ V.T).abs().max() > 1e-6) is along


def test_empty_of_effect_where_there_is_no_component(generator):
    """Directions orthogonal to all activations change nothing beyond rounding."""
    model, batch = architectures.build("llama"), architectures.batch()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and parameter.shape[0] == 16:
                parameter[0] = 0  # nothing writes to coordinate 0
        model.model.embed_tokens.weight[:, 0] = 0
    _, plain = gradients(model, batch)
    d = tp.Directions({SITE: torch.eye(16)[:1]})
    with tp.Ablation(d, mode="forward").attach(model):
        loss, found = gradients(model, batch)
    assert torch.equal(model(**batch).loss, loss)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, r"Ablation.strength must lie in \[0, 1\].*found 1.5"),
        ({"strength": float("nan")}, "strength must lie in"),
        ({"mode": "backward"}, "Ablation.mode must be 'both' or 'forward', found 'backward'"),
        ({"positions": "prompt"}, "Ablation.positions must be 'all' or 'response', found 'prompt'"),
        ({"origin": "mean"}, "Ablation.origin must be 'zero' or a mapping from site to mean, found 'mean'"),
    ],
)
def test_options_that_no_guard_takes(directions, options, message):
    with pytest.raises(UsageError, match=message):
        unchecked.build(tp.Ablation, directions, **options)


def test_an_origin_that_lacks_a_site(directions):
    with pytest.raises(DirectionsError, match=r"a mean \[d_model\] = \[32\] at resid_post.1, found none"):
        tp.Ablation(directions, origin={})
    with pytest.raises(DirectionsError, match=r"at resid_post.1, found \[31\]"):
        tp.Ablation(directions, origin={SITE: torch.zeros(31)})


def test_dependent_rows_are_said(generator):
    rows = torch.randn(2, 32, generator=generator)
    d = tp.Directions({SITE: torch.cat([rows, rows[:1] * 2])})
    assert str(tp.Ablation(d)) == ("Ablation (both) at resid_post.1 (rank 2 of 3 rows, which are linearly dependent)")
    assert str(tp.GradientProjection(d)).startswith("GradientProjection at resid_post.1 (rank 2 of 3")
