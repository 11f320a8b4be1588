"""The measures against naive oracles: projections of planted shifts, sketched gradients, nulls, the rule."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import tropism as tp
from tropism.data.render import render
from tropism.forecasting import evidence, gradient, projection, verdict
from tropism.forecasting.dry_run import Measured, Predicted, predict
from tropism.forecasting.sides import Side

CHATS = [
    ({"role": "user", "content": f"{a} + 1?"}, {"role": "assistant", "content": f"It is {a + 1}" + "." * (a % 3)})
    for a in range(6)
]


SITE = tp.Site(0)


def side(name, vector, pulls=None):
    return Side(name, {SITE: np.asarray(vector, dtype=float)}, 1.0, 0.9, 32, pulls)


def planted(shift, *, n=40, d=256, seed=0):
    """A trait along e0 of length 1, own answers about 0, rows shifted along it; the rest is noise."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(30, 1, d)) * 0.05
    rows = rng.normal(size=(n, 1, d)) * 0.05
    rows[:, 0, 0] += shift
    return side("trait", np.eye(d)[0]), rows, own


def measured(shift, **options):
    one, h, own = planted(shift, **options)
    z, z_own = (projection.shares([one], [SITE], x, own)["trait"] for x in (h, own))
    nulls = projection.Nulls([SITE], h, own, draws=200, seed=0)
    return z, evidence.projected(z, z_own, nulls.dose(one), nulls.tail(one, ~evidence.standing_out(z)), seed=0)


def test_a_planted_shift_is_the_dose_and_nothing_planted_is_none():
    z, found = measured(1.0)
    assert z.mean() == pytest.approx(1.0, abs=0.1)
    assert found.dose_low < 1.0 < found.dose_high + 0.1
    _, nothing = measured(0.0)
    assert nothing.dose_low < 0 < nothing.dose_high
    assert nothing.p > 0.05


def test_a_planted_minority_shows_in_the_tail_and_not_in_the_mean():
    """Also where it lies at half of the trait's length, as traits do in another domain than their own pairs'."""
    shift = np.zeros(40)
    shift[:2] = 0.5
    z, found = measured(shift)
    assert found.dose < 0.1
    assert found.tail == pytest.approx(0.05)
    assert found.p_tail <= 0.05
    assert set(np.argsort(-z)[:2]) == {0, 1}


def test_traits_that_overlap_are_told_apart():
    """Against numpy's least squares, and against the projection on one direction, which counts one trait for the other."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 64))
    b = b + a
    own = np.zeros((3, 1, 64))
    rows = np.stack([0.5 * a, 0.5 * b, 0.4 * a + 0.7 * b])[:, None]
    found = projection.shares([side("a", a), side("b", b)], [SITE], rows, own)
    exact = np.linalg.lstsq(np.stack([a, b]).T, rows[:, 0].T, rcond=None)[0]
    np.testing.assert_allclose([found["a"], found["b"]], exact, atol=0.02)
    alone = projection.shares([side("b", b)], [SITE], rows, own)["b"]
    assert alone[0] > 0.2 > abs(found["b"][0])


def test_sketches_keep_the_inner_products_of_the_gradients_of_lora_b(model, tokenizer):
    """Against PEFT's own lora_B gradients, with the sketch's A put into the adapter, chat by chat."""
    model = model.double()
    found = gradient.sketches(model, tokenizer, CHATS, batch_size=4)
    linears = gradient.adapted_linears(model)
    adapted = get_peft_model(model, LoraConfig(r=gradient.RANK, lora_alpha=gradient.RANK, target_modules="all-linear"))
    layers = tp.decoder_layers(adapted)
    names = {}
    for name in linears:
        layer = layers[int(name.split(".")[0])].get_submodule(name.split(".", 1)[1])
        maker = gradient.Sketcher.at(name, layer.in_features, layer.out_features, 0)
        layer.lora_A["default"].weight.data = maker.A.double()
        names[name] = layer
    exact = []
    for chat in CHATS:
        rendered = render(tokenizer, chat)
        ids = torch.tensor([rendered.input_ids])
        labels = torch.where(torch.tensor([rendered.response_mask]), ids, -100)
        adapted.zero_grad()
        adapted(input_ids=ids, labels=labels).loss.backward()
        exact.append(torch.cat([layer.lora_B["default"].weight.grad.flatten() for layer in names.values()]).numpy())
    exact = np.stack(exact)
    # A count sketch keeps inner products in expectation; its error is of the order of 1/√4096 of the norms.
    norms = np.linalg.norm(exact, axis=1)
    error = np.abs(found @ found.T - exact @ exact.T) / np.outer(norms, norms)
    assert error.max() < 0.2
    assert np.corrcoef((found @ found.T).ravel(), (exact @ exact.T).ravel())[0, 1] > 0.98


def test_batching_changes_no_sketch_and_the_model_is_as_before(model, tokenizer):
    before = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    one = gradient.sketches(model.double(), tokenizer, CHATS, batch_size=1)
    many = gradient.sketches(model, tokenizer, CHATS, batch_size=6)
    np.testing.assert_allclose(one, many, rtol=1e-5, atol=1e-9)
    for name, p in model.named_parameters():
        assert p.requires_grad == before[name][0]
        assert p.grad is None


def test_swapping_the_sides_of_pairs_takes_the_trait_out():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=64)
    pairs = direction + rng.normal(size=(24, 64))
    null = gradient.sign_flips(pairs, direction, draws=300, seed=0)
    found = evidence.pulled(float(gradient.cosines(direction[None], pairs.mean(axis=0))[0]), null)
    assert found.p < 0.01
    assert found.z > 1
    assert abs(float(null.mean())) < 0.1


def test_a_rate_is_compared_with_that_of_own_answers():
    rows, own = np.array([1.0] * 5 + [0.0] * 45), np.zeros(40)
    found = evidence.rated(rows, own)
    assert (found.rows, found.own) == (0.1, 0.0)
    assert found.p == pytest.approx(0.0478, abs=0.01)
    assert evidence.rated(own, own).p == 1.0
    assert evidence.rated(rows, np.array([])) is None


def flat(dose=0.0, tail=0.0, p_dose=1.0, p_tail=1.0):
    return evidence.Projected(dose, dose - 0.1, dose + 0.1, 0.0, tail, p_dose, p_tail)


RATED = evidence.Rated(0.2, 0.0, 1e-4)
RISES = Predicted(0.3, 0.1, 0.5, 0.0, 0.1, 8, 80, 24)
STAYS = Predicted(0.0, -0.02, 0.04, 0.0, 0.0, 8, 80, 24)
SURE, UNSURE = verdict.Corrected(1e-3, 1e-3, 1e-3), verdict.Corrected()


@pytest.mark.parametrize(
    ("valid", "rated", "projected", "p", "dry", "outcome"),
    [
        (False, RATED, None, SURE, RISES, "cannot"),
        (True, RATED, flat(), SURE, RISES, "expected"),
        (True, RATED, flat(), SURE, None, "possible"),
        (True, RATED, flat(), SURE, STAYS, "none"),
        (True, evidence.Rated(0.0, 0.0, 1.0), flat(dose=0.5), verdict.Corrected(1.0, 1e-3, 1.0), None, "none"),
        (True, evidence.Rated(0.0, 0.0, 1.0), flat(tail=0.1), verdict.Corrected(1.0, 1.0, 1e-3), None, "possible"),
        (True, None, flat(dose=0.5), verdict.Corrected(1.0, 1e-3, 1.0), None, "possible"),
        (True, None, flat(dose=0.5), UNSURE, None, "none"),
        # together they are likely, also where neither is beyond its null alone
        (True, evidence.Rated(0.07, 0.0, 0.3), flat(tail=0.1), UNSURE, None, "possible"),
        (True, evidence.Rated(0.0, 0.0, 1.0), flat(tail=0.02), UNSURE, None, "none"),
    ],
)
def test_the_rule(valid, rated, projected, p, dry, outcome):
    said = verdict.decide(0.7, valid, rated, projected, None, p, dry)
    assert said.outcome == outcome
    assert said.because.endswith(".")


def test_the_dry_run_extrapolates_a_rise_and_sees_none_where_there_is_none():
    rng = np.random.default_rng(0)
    rising = np.array([np.zeros(24), rng.random(24) < 0.4]).astype(float)
    found = predict(Measured((0, 8), rising), planned=80, ceiling=1.0)
    assert found.rise > 0.9
    assert found.low > 0
    capped = predict(Measured((0, 8), rising), planned=80, ceiling=0.5)
    assert capped.rise == pytest.approx(0.5)
    still = predict(Measured((0, 8), np.zeros((2, 24))), planned=80, ceiling=1.0)
    assert (still.rise, still.low, still.high) == (0.0, 0.0, 0.0)
    assert predict(Measured((0, 8), np.full((2, 24), np.nan)), planned=80, ceiling=1.0) is None
