"""PCA against numpy's SVD: exact, folded into a second moment, and randomised."""

import numpy as np
import pytest
import torch

import tropism as tp
from tropism.directions import pca as module
from tropism.directions.finder import Window
from tropism.errors import DirectionsError
from tropism.linalg import principal_angles

SITE = tp.Site(3)


def sides(n, d, rank=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = 1.25 ** -torch.arange(rank).float()
    axes = torch.linalg.qr(torch.randn((d, rank), generator=generator))[0]
    difference = (torch.randn((n, rank), generator=generator) + 1) * 10 * scales @ axes.T
    difference += 0.01 * torch.randn((n, d), generator=generator)
    negative = torch.randn((n, d), generator=generator)
    return negative + difference, negative


def run(finder, positive, negative, step=50, paired=True):
    collector = finder.collector(SITE, positive.shape[1], 0)
    for start in range(0, max(len(positive), len(negative)), step):
        collector.add(Window(positive[start : start + step], negative[start : start + step], paired))
    return collector.result()


def oracle(rows, k):
    return torch.from_numpy(np.linalg.svd(rows.double().numpy(), full_matrices=False)[2][:k])


def rows_of(finder, positive, negative):
    rows = positive - negative if finder.of == "differences" else positive - negative.double().mean(0)
    return rows - rows.mean(0) if finder.centred else rows


@pytest.mark.parametrize("of", ["differences", "positive"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("n", [40, 300], ids=["rows", "folded"])
def test_components_are_those_of_the_svd(of, centred, n):
    positive, negative = sides(n, 64)
    finder = tp.PCA(k=5, of=of, centred=centred)
    found = run(finder, positive, negative)
    expected = oracle(rows_of(finder, positive, negative), 5)
    assert float(principal_angles(found.vectors.double(), expected).max()) < 1e-5
    for row, other in zip(found.vectors.double(), expected, strict=True):
        assert abs(float(row @ other)) > 1 - 1e-6
    total = (rows_of(finder, positive, negative).double() ** 2).sum()
    share = (rows_of(finder, positive, negative).double() @ expected.T).square().sum(0) / total
    assert found.facts["explained"] == pytest.approx(share.tolist(), rel=1e-4)


@pytest.mark.parametrize("n", [250, 700], ids=["rows", "folded"])
def test_the_randomised_subspace_is_the_exact_one(monkeypatch, n):
    """At k = 20, to 1e-3 radians in the largest principal angle."""
    monkeypatch.setattr(module, "EXACT_UP_TO", 16)
    positive, negative = sides(n, 400, rank=60)
    called = []
    iterate = module.subspace_iteration
    monkeypatch.setattr(module, "subspace_iteration", lambda *args: called.append(1) or iterate(*args))
    found = run(tp.PCA(k=20), positive, negative)
    assert called
    assert float(principal_angles(found.vectors.double(), oracle(positive - negative, 20)).max()) < 1e-3


def test_a_subspace_without_a_gap_is_refused():
    with pytest.raises(DirectionsError, match="the top 2 components did not settle in 5 steps"):
        module.subspace_iteration(lambda Q: Q, 40, 2, seed=0, tolerance=-1.0, most=5)


def test_the_positive_side_projects_positively():
    positive, negative = sides(80, 32)
    for sign in (1, -1):
        found = run(tp.PCA(k=4), sign * positive, sign * negative)
        along = (sign * (positive - negative)).mean(0) @ found.vectors.T
        assert (along > 0).all()


def test_the_share_of_the_mean_difference_is_reported():
    positive, negative = sides(80, 32)
    difference = (positive - negative).double().mean(0)
    for finder in (tp.PCA(k=3), tp.PCA(k=3, centred=True)):
        found = run(finder, positive, negative)
        V = found.vectors.double()
        expected = float((V @ difference).square().sum() / difference.square().sum())
        assert found.facts["mean_difference_share"] == pytest.approx(expected, rel=1e-5)


def test_centring_takes_the_mean_shift_out():
    generator = torch.Generator().manual_seed(0)
    v = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=0)
    negative = torch.randn((100, 32), generator=generator)
    positive = negative + 8 * v + 0.1 * torch.randn((100, 32), generator=generator)
    held = [run(tp.PCA(k=1, centred=c), positive, negative).facts["mean_difference_share"] for c in (False, True)]
    assert held[0] > 0.99
    assert held[1] < 0.5


def test_more_components_than_the_data_hold_are_refused():
    positive, negative = sides(6, 32)
    with pytest.raises(
        DirectionsError, match=r"PCA.k=7 at resid_post.3 is more than the 6 components that 6 rows hold"
    ):
        run(tp.PCA(k=7), positive, negative)
    tp.PCA(k=6).check_rows(6)
    tp.PCA(k=5, centred=True).check_rows(6)
    for finder, held in ((tp.PCA(k=7), 6), (tp.PCA(k=6, centred=True), 5)):
        with pytest.raises(DirectionsError, match=f"PCA.k must be at most the {held} components that 6 rows can hold"):
            finder.check_rows(6)


def test_differences_need_pairs():
    positive, negative = sides(6, 32)
    with pytest.raises(DirectionsError, match="needs pairs"):
        run(tp.PCA(k=2), positive, negative, paired=False)


def test_options_are_checked():
    with pytest.raises(DirectionsError, match="PCA.k must be at least 1, found 0"):
        tp.PCA(k=0)


def test_tokens_are_rows_in_a_contrast_of_models(tokenizer):
    import tiny

    chats = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"answer {i}"}] for i in range(6)]
    contrast = tp.Contrast.of_models(chats, tuned=tiny.model(1), base=tiny.model(0))
    found = tp.find_directions(
        tiny.model(0), tokenizer, contrast, sites=[tp.Site(1)], finder=tp.PCA(k=2, per="token"), batch_size=4
    )
    tokens = sum(sum(rendered.response_mask) for rendered in contrast.render(tokenizer)[0])
    assert found.provenance["found"]["resid_post.1"]["rows"] == tokens
