"""A trait on a model is found once: kept on disk under what it depends on, and read back only whole."""

import numpy as np
import pytest
import torch

import tiny
import tropism as tp
from tropism.forecasting import sides
from tropism.forecasting import trait as traits
from tropism.forecasting.sides import Reader, find


@pytest.fixture(scope="module")
def model():
    return tiny.model().eval()


def reader(model, folder, **options):
    return Reader(model, tiny.tokenizer(), (tp.Site(1), tp.Site(2)), batch_size=8, folder=folder, **options)


def test_a_side_is_read_once_and_comes_back_the_same(model, tmp_path, monkeypatch):
    trait = traits.load("all_caps")
    first = find(reader(model, tmp_path), trait, pairs=8, gradient_pairs=2)
    monkeypatch.setattr(sides, "_find", lambda *_: pytest.fail("it was read again"))
    again = find(reader(model, tmp_path), trait, pairs=8, gradient_pairs=2)
    assert again.difference.keys() == first.difference.keys()
    for site, vector in first.difference.items():
        np.testing.assert_array_equal(again.difference[site], vector)
    if first.pulls is not None:
        np.testing.assert_array_equal(again.pulls, first.pulls)
    assert (again.auc, again.pairs) == (first.auc, 8)


def test_the_difference_is_the_mean_over_pairs_of_mean_response_activations(model, tmp_path):
    """Against one forward pass per text."""
    trait = traits.load("all_caps")
    found = find(reader(model, tmp_path), trait, pairs=8)
    contrast = trait.contrast()
    for site, vector in found.difference.items():
        means = []
        for side in (contrast.positive, contrast.negative):
            for chat in side[:8]:
                row = tp.render(tiny.tokenizer(), chat)
                with torch.no_grad(), tp.capture(model, [site]) as held:
                    model(input_ids=torch.tensor([row.input_ids]))
                means.append(held[site][0, row.positions["response"]].mean(dim=0).double().numpy())
        np.testing.assert_allclose(vector, np.mean(means[:8], axis=0) - np.mean(means[8:], axis=0), atol=1e-5)


def test_another_model_text_or_option_and_a_damaged_file_are_read_anew(model, tmp_path):
    trait = traits.load("all_caps")
    find(reader(model, tmp_path), trait, pairs=8)
    other = tiny.model(seed=1).eval()
    find(reader(other, tmp_path), trait, pairs=8)
    find(reader(model, tmp_path), trait, pairs=9)
    find(reader(model, tmp_path), traits.load("emoji"), pairs=8)
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) == 4
    before = {file: file.read_bytes() for file in files}
    for file in files:
        held = bytearray(before[file])
        held[len(held) // 2] ^= 1
        file.write_bytes(bytes(held))
    find(reader(model, tmp_path), trait, pairs=8)
    find(reader(other, tmp_path), trait, pairs=8)
    assert sum(file.read_bytes() == before[file] for file in files) == 2
