"""Choosing directions by number, for all sites and by block."""

import pytest
import torch

import tropism as tp
from tropism.directions.components import choose_components
from tropism.errors import DirectionsError

ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
FOUND = tp.Directions(
    {tp.Site(1): ROWS, tp.Site(3): 2 * ROWS}, {"finder": "pca"}, {tp.Site(1): torch.eye(6), tp.Site(3): torch.eye(6)}
)


def test_the_same_numbers_at_every_site():
    chosen = choose_components(FOUND, [3, 0])
    assert torch.equal(chosen.vectors[tp.Site(1)], ROWS[[3, 0]])
    assert torch.equal(chosen.vectors[tp.Site(3)], 2 * ROWS[[3, 0]])
    assert chosen.provenance == {"finder": "pca", "components": [3, 0]}
    assert set(chosen.covariance) == {tp.Site(1), tp.Site(3)}


def test_numbers_by_block_leave_the_other_blocks_out():
    chosen = choose_components(FOUND, {3: [1]})
    assert chosen.sites == (tp.Site(3),)
    assert set(chosen.covariance) == {tp.Site(3)}
    assert chosen.provenance["components"] == {"3": [1]}


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([4], "there is no number 4; the 4 directions are 0 to 3"),
        ([-1], "there is no number -1"),
        ([], "must be different row numbers, at least one"),
        ([1, 1], "must be different row numbers"),
        ({2: [0]}, "there are no directions at block 2; there are at 1, 3"),
    ],
)
def test_a_number_that_is_not_there_is_refused(components, message):
    with pytest.raises(DirectionsError, match=message):
        choose_components(FOUND, components)
