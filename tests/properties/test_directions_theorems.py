"""Theorems: planted directions come back, grouping changes nothing, shuffled labels know nothing."""

import pytest
import torch

import tropism as tp
from tropism.directions import evidence
from tropism.directions.covariance import CovarianceSketch
from tropism.directions.finder import Window

D = 48
SITE = tp.Site(1)


def planted(n=400, seed=0, strength=4.0):
    """Two sides of noise with very different scales by dimension, the positive one moved along a direction."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(D, generator=generator)
    v /= v.norm()
    scales = torch.linspace(0.3, 1.2, D)
    shared = torch.randn((n, D), generator=generator) * scales * 2
    positive = shared + torch.randn((n, D), generator=generator) * scales * 0.2 + strength * v
    negative = shared + torch.randn((n, D), generator=generator) * scales * 0.2
    return positive, negative, v


def found(finder, positive, negative, step=37, paired=True):
    collector = finder.collector(SITE, D, 0)
    for start in range(0, len(positive), step):
        collector.add(Window(positive[start : start + step], negative[start : start + step], paired))
    return collector.result().vectors


@pytest.mark.parametrize(
    "finder",
    [tp.MeanDifference(), tp.PCA(k=1), tp.PCA(k=1, of="positive"), tp.LogisticProbe()],
    ids=["mean_difference", "pca", "pca_positive", "probe"],
)
def test_a_planted_direction_is_recovered(finder):
    positive, negative, v = planted(strength=12.0 if getattr(finder, "of", "") == "positive" else 4.0)
    if finder.name == "logistic_probe":
        # A probe discounts dimensions that vary; where none does more than another it finds the difference itself.
        generator = torch.Generator().manual_seed(1)
        negative = torch.randn((4000, D), generator=generator)
        positive = torch.randn((4000, D), generator=generator) + 1.5 * v
    vector = found(finder, positive, negative)[0]
    assert float(vector @ v / vector.norm()) > 0.99


@pytest.mark.parametrize("finder", [tp.MeanDifference(), tp.PCA(k=3), tp.PCA(k=3, of="positive", centred=True)])
@pytest.mark.parametrize("step", [1, 64, 400])
def test_windows_change_nothing(finder, step):
    positive, negative, _ = planted()
    torch.testing.assert_close(
        found(finder, positive, negative, step), found(finder, positive, negative), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("finder", [tp.MeanDifference(), tp.PCA(k=2)])
def test_batch_size_and_order_change_nothing(model, tokenizer, finder):
    prompts = [f"Say {'again and ' * (i % 5)}{i}." for i in range(24)]
    loud, quiet = [f"WELL {i}" * (1 + i % 3) for i in range(24)], [f"well {i}" for i in range(24)]

    def directions(order, batch_size):
        contrast = tp.Contrast.of_responses(
            [prompts[i] for i in order], positive=[loud[i] for i in order], negative=[quiet[i] for i in order]
        )
        return tp.find_directions(
            model, tokenizer, contrast, finder=finder, sites=[SITE], batch_size=batch_size
        ).vectors[SITE]

    reference = directions(range(24), 1)
    for order, batch_size in ((range(24), 5), (reversed(range(24)), 8), (range(24), 24)):
        torch.testing.assert_close(directions(list(order), batch_size), reference, atol=1e-5, rtol=1e-4)


def test_mean_difference_keeps_nothing_that_grows():
    collector = tp.MeanDifference().collector(SITE, D, 0)
    sketch = CovarianceSketch(D, 0)

    def size():
        held = [v for one in (collector, sketch) for v in vars(one).values()]
        flat = [w for v in held for w in (v if isinstance(v, list) else [v])]
        tensors = [
            t for v in flat for t in ([v] if torch.is_tensor(v) else vars(v).values() if hasattr(v, "__dict__") else [])
        ]
        return sum(t.numel() for t in tensors if torch.is_tensor(t))

    positive, negative, _ = planted(50)
    collector.add(Window(positive, negative, True))
    sketch.add(Window(positive, negative, True))
    before = size()
    for _ in range(20):
        collector.add(Window(positive, negative, True))
        sketch.add(Window(positive, negative, True))
    assert size() == before > 0


def test_shuffled_labels_tell_nothing_apart():
    """Directions of shuffled labels on one half separate the other half at chance, on average."""
    values = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn((400, D), generator=generator)
        direction = found(tp.MeanDifference(), rows[:100], rows[100:200], paired=False)[0]
        along = (rows[200:] @ direction).double().numpy()
        values.append(evidence.auc(along[:100], along[100:]).value)
    assert abs(sum(values) / len(values) - 0.5) < 0.02
    assert max(values) < 0.65


def test_a_direction_of_shuffled_pairs_is_short(model, tokenizer):
    prompts = [f"Say {i}." for i in range(40)]
    contrast = tp.Contrast.of_responses(prompts, positive=["LOUD"] * 40, negative=["quiet"] * 40)
    real = tp.find_directions(model, tokenizer, contrast, sites=[SITE]).vectors[SITE].norm()
    control = tp.find_directions(model, tokenizer, contrast.shuffled(0), sites=[SITE]).vectors[SITE].norm()
    assert control < 0.1 * real


def test_the_covariance_sketch_is_unbiased():
    positive, negative, v = planted(300, strength=20.0)
    centred = torch.cat([positive - positive.mean(0), negative - negative.mean(0)]).double()
    exact = centred.T @ centred / (len(centred) - 2)
    total = torch.zeros(D, D, dtype=torch.float64)
    for seed in range(200):
        sketch = CovarianceSketch(D, seed)
        sketch.add(Window(positive[:120], negative[:150], False))
        sketch.add(Window(positive[120:], negative[150:], False))
        factor = sketch.factor().double()
        total += factor.T @ factor / 200
    assert float((total - exact).norm() / exact.norm()) < 0.06
    # The direction between the sides is not in it.
    along = float(v.double() @ total @ v.double())
    assert along < 2 * float(v.double() @ exact @ v.double())


def test_covariance_controls_vary_as_activations_do(model, tokenizer):
    contrast = tp.Contrast.of_responses(
        [f"Say {i}." for i in range(40)], positive=[f"L{i}" for i in range(40)], negative=[f"q{i}" for i in range(40)]
    )
    directions = tp.find_directions(model, tokenizer, contrast, sites=[SITE])
    factor = directions.covariance[SITE].double()
    assert factor.shape == (64, 32)
    covariance = factor.T @ factor

    def variance_along(kind):
        rows = [directions.random_like(seed, kind).basis(SITE)[0].double() for seed in range(60)]
        return sum(float(u @ covariance @ u) for u in rows) / 60

    assert variance_along("covariance") > 1.5 * variance_along("isotropic")


def test_the_orthogonal_complement_holds_nothing_of_the_directions():
    generator = torch.Generator().manual_seed(0)
    directions = tp.Directions({SITE: torch.randn((3, D), generator=generator)})
    control = directions.orthogonal_complement(seed=4)
    V = directions.basis(SITE)
    assert float((control.vectors[SITE] @ V.T).abs().max()) < 1e-5
    torch.testing.assert_close(control.vectors[SITE].norm(dim=1), directions.vectors[SITE].norm(dim=1))
    whole = directions.orthogonal_complement(seed=4, k=D - 3).basis(SITE)
    torch.testing.assert_close(whole.T @ whole + V.T @ V, torch.eye(D), atol=1e-5, rtol=0)
