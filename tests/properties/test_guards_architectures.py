"""Sections 2 to 4 of the methods on every architecture, plain and with LoRA, against hidden states edited by hand."""

import pytest
import torch

import architectures
import tropism as tp
from hand_edits import ProjectedBackward, assert_same, differ, edited_blocks, gradients, projector
from tropism.errors import SiteError

SITES = (tp.Site(0), tp.Site(1))
EACH = pytest.mark.parametrize("name", architectures.NAMES)
WITH_LORA = pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
# bases are float32 by contract and the oracle's are float64: they agree to the rounding of the former
TOLERANCE = 1e-5


@pytest.fixture
def directions():
    generator = torch.Generator().manual_seed(1)
    return tp.Directions({site: torch.randn(2, architectures.WIDTH, generator=generator) for site in SITES})


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(2)
    return tp.Directions({site: torch.randn(architectures.WIDTH, generator=generator) for site in SITES})


def test_the_sixteen_architectures_are_here():
    assert set(architectures.REQUIRED) <= set(architectures.NAMES)


@EACH
@WITH_LORA
def test_ablation(name, lora, directions):
    model, batch = architectures.build(name, lora=lora), architectures.batch(name)
    before = model(**batch).logits
    P = {site: projector(directions, site) for site in SITES}

    with edited_blocks(model, {site.layer: lambda h, P=P[site]: h - h @ P for site in SITES}):
        loss, wanted = gradients(model, batch)
    with tp.Ablation(directions).attach(model), tp.capture(model, SITES) as acts:
        guarded_loss, found = gradients(model, batch)
    torch.testing.assert_close(guarded_loss, loss, rtol=TOLERANCE, atol=0)
    assert_same(wanted, found, TOLERANCE)
    for site in SITES:
        assert (acts[site].detach() @ directions.basis(site).double().T).abs().max() < 1e-5

    with edited_blocks(model, {site.layer: lambda h, P=P[site]: h - (h @ P).detach() for site in SITES}):
        loss, wanted = gradients(model, batch)
    with tp.Ablation(directions, mode="forward").attach(model):
        guarded_loss, found_forward = gradients(model, batch)
    torch.testing.assert_close(guarded_loss, loss, rtol=TOLERANCE, atol=0)
    assert_same(wanted, found_forward, TOLERANCE)
    assert differ(found, found_forward) > 1e-3

    assert torch.equal(model(**batch).logits, before)


@EACH
@WITH_LORA
def test_gradient_projection(name, lora, directions):
    model, batch = architectures.build(name, lora=lora), architectures.batch(name)
    logits = model(**batch).logits
    loss, plain = gradients(model, batch)
    P = {site: projector(directions, site) for site in SITES}
    with edited_blocks(model, {site.layer: lambda h, P=P[site]: ProjectedBackward.apply(h, P, 1.0) for site in SITES}):
        _, wanted = gradients(model, batch)
    with tp.GradientProjection(directions).attach(model):
        assert torch.equal(model(**batch).logits, logits)
        guarded_loss, found = gradients(model, batch)
    assert torch.equal(guarded_loss, loss)
    assert_same(wanted, found, TOLERANCE)

    above = {id(p) for p in tp.decoder_layers(model)[2].parameters()}
    names = [name for name, p in model.named_parameters() if id(p) in above and name in found]
    assert names
    assert all(torch.equal(found[name], plain[name]) for name in names)
    assert differ(plain, found) > 1e-3


@EACH
@WITH_LORA
def test_steering(name, lora, vectors):
    model, batch = architectures.build(name, lora=lora), architectures.batch(name)
    v = [vectors.vectors[site][0].double() for site in SITES]
    for increments, added in ((False, (2 * v[0], 2 * v[1])), (True, (2 * v[0], 2 * (v[1] - v[0])))):
        with edited_blocks(model, {0: lambda h, a=added[0]: h + a, 1: lambda h, a=added[1]: h + a}):
            loss, wanted = gradients(model, batch)
        with tp.Steering(vectors, coefficient=2.0, increments=increments).attach(model):
            guarded_loss, found = gradients(model, batch)
        torch.testing.assert_close(guarded_loss, loss, rtol=TOLERANCE, atol=0)
        assert_same(wanted, found, TOLERANCE)


@EACH
@WITH_LORA
def test_streams_add_up(name, lora):
    """`resid_post = resid_pre + attn_out + mlp_out`; Granite multiplies both on the way to the stream, and is refused."""
    model, batch = architectures.build(name, lora=lora).eval(), architectures.batch(name)
    streams = [tp.Site(1, stream) for stream in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    if name == "granite":
        with pytest.raises(SiteError, match="relative residual of 0.5"), tp.capture(model, streams):
            pass
        return
    with tp.capture(model, streams) as acts, torch.no_grad():
        model(**batch)
    before, attention, mlp, after = (acts[site].reshape(2, 6, -1) for site in streams)
    torch.testing.assert_close(after, before + attention + mlp, rtol=1e-9, atol=1e-9)
    assert min(float(attention.abs().max()), float(mlp.abs().max())) > 1e-3


@EACH
def test_hidden_states_are_sites_one_later(name):
    model, batch = architectures.build(name).eval(), architectures.batch(name)
    with tp.capture(model, [tp.Site(0), tp.Site(1)]) as acts, torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(hidden[1], acts[tp.Site(0)])
    assert torch.equal(hidden[2], acts[tp.Site(1)])
