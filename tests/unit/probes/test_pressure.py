"""`pressure`: sign, columns, one matmul for any number of directions; and what is refused."""

import pytest
import torch

import tiny
import tropism as tp
from gradient_cases import chats
from tropism.errors import DirectionsError, DirectionsMismatch, SiteError, UsageError
from tropism.probes.random_controls import draw_random, random_pressure
from tropism.stats.random_controls import random_p_values

SITE = tp.Site(1)


@pytest.fixture
def cache(model, tokenizer):
    return tp.collect_gradients(model, tokenizer, chats(), tp.sites(model, "0,1,2"))


def test_every_number_by_hand(cache, generator):
    v = 7 * torch.randn(32, generator=generator)
    table = tp.pressure(cache, tp.Directions({SITE: v, tp.Site(2): -v}))
    assert list(table.columns) == ["chat", "site", "pressure", "cosine", "gradient_norm", "loss"]
    assert len(table) == 16
    row = table[(table.chat == 3) & (table.site == "resid_post.1")].iloc[0]
    g = cache.gradients[SITE][3]
    assert row.pressure == pytest.approx(float(-(g @ v) / v.norm()), rel=1e-5)
    assert row.cosine == pytest.approx(float(torch.cosine_similarity(g, v, dim=0)), rel=1e-5)
    assert row.cosine == pytest.approx(-row.pressure / row.gradient_norm, rel=1e-5)
    assert row.gradient_norm == pytest.approx(float(g.norm()))
    assert row.loss == pytest.approx(float(cache.losses[3]))


def test_it_turns_with_the_direction_and_ignores_its_length(cache, generator):
    v = torch.randn(32, generator=generator)
    one = tp.pressure(cache, tp.Directions({SITE: v}))
    back = tp.pressure(cache, tp.Directions({SITE: -100 * v}))
    torch.testing.assert_close(torch.tensor(one.pressure.values), -torch.tensor(back.pressure.values))


def test_several_vectors_are_told_apart(cache, generator):
    v = torch.randn((3, 32), generator=generator)
    table = tp.pressure(cache, tp.Directions({SITE: v}))
    assert sorted(table.direction.unique()) == [0, 1, 2]
    single = tp.pressure(cache, tp.Directions({SITE: v[2]}))
    assert table[table.direction == 2].pressure.tolist() == pytest.approx(single.pressure.tolist(), rel=1e-3)


def test_a_step_along_the_loss_moves_the_projection_by_the_pressure(model, tokenizer, generator):
    """A trainable offset at the site: one SGD step moves `h·v̂` by exactly lr · tokens · pressure."""
    v = torch.randn(32, generator=generator)
    d = tp.Directions({SITE: v})
    chat = chats()[4]
    table = tp.pressure(tp.collect_gradients(model, tokenizer, [chat], [SITE], "all"), d)
    offset = torch.nn.Parameter(torch.zeros(32))
    handle = tp.decoder_layers(model)[1].register_forward_hook(lambda _m, _a, out: out + offset)
    row = tp.render(tokenizer, chat)
    ids = torch.tensor([row.input_ids])
    optimizer = torch.optim.SGD([offset], lr=0.1)

    def projection():
        with tp.capture(model, [SITE]) as acts, torch.no_grad():
            model(input_ids=ids)
        return float((acts[SITE] @ (v / v.norm())).mean())

    before = projection()
    model(input_ids=ids, labels=torch.where(torch.tensor([row.response_mask]), ids, -100)).loss.backward()
    optimizer.step()
    moved = projection() - before
    handle.remove()
    predicted = 0.1 * ids.shape[1] * table.pressure.iloc[0]
    assert moved * table.pressure.iloc[0] > 0
    assert moved == pytest.approx(predicted, rel=1e-3)


def test_random_directions_equal_a_loop_over_them(cache, generator):
    v = torch.randn(32, generator=generator)
    d = tp.Directions({SITE: v})
    table = random_pressure(cache, d, count=5, seed=3)
    assert table.draw.tolist() == [-1, 0, 1, 2, 3, 4]
    own = tp.pressure(cache, d).pressure.mean()
    assert table.pressure.iloc[0] == pytest.approx(own)
    for draw, vector in enumerate(draw_random(d, SITE, 5, 3, "isotropic")):
        alone = tp.pressure(cache, tp.Directions({SITE: vector}))
        assert table.pressure.iloc[1 + draw] == pytest.approx(alone.pressure.mean(), rel=1e-4)
        assert table.cosine.iloc[1 + draw] == pytest.approx(alone.cosine.mean(), rel=1e-4)


def test_groups_are_means_over_their_chats(cache, generator):
    d = tp.Directions({SITE: torch.randn(32, generator=generator)})
    table = random_pressure(cache, d, count=2, groups=["a", "b"] * 4)
    own = tp.pressure(cache, d)
    for group, start in (("a", 0), ("b", 1)):
        found = table[(table.group == group) & (table.draw == -1)].pressure.iloc[0]
        assert found == pytest.approx(own.pressure[start::2].mean(), rel=1e-5)


def test_covariance_matched_directions_vary_as_the_activations_do(generator):
    factor = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    d = tp.Directions({SITE: torch.ones(3)}, covariance={SITE: factor})
    drawn = draw_random(d, SITE, 4000, 0, "covariance")
    assert drawn.std(0).tolist() == pytest.approx([3.0, 1.0, 0.0], rel=0.05)
    same = draw_random(d, SITE, 4000, 0, "covariance")
    assert torch.equal(drawn, same)
    assert not torch.equal(draw_random(d, tp.Site(2), 5, 0, "isotropic"), draw_random(d, SITE, 5, 0, "isotropic"))


def test_p_value_counts_draws_at_least_as_far_from_zero(cache, generator):
    d = tp.Directions({SITE: torch.randn(32, generator=generator)})
    table = random_pressure(cache, d, count=4)
    table["pressure"] = [0.5, 0.1, -0.6, 0.5, 0.2]
    p = random_p_values(table)
    assert p.p.tolist() == [(1 + 2) / 5]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda c: tp.pressure(c, tp.Directions({tp.Site(3): torch.ones(32)})),
            SiteError,
            "resid_post.3, of which the cache",
        ),
        (
            lambda c: tp.pressure(c, tp.Directions({SITE: torch.ones(8)})),
            DirectionsError,
            "width 8, the cache's model has 32",
        ),
        (
            lambda c: tp.pressure(
                c, tp.Directions({SITE: torch.ones(32)}, {"model": {"name": "other", "config_hash": "x"}})
            ),
            DirectionsMismatch,
            "found on 'other'",
        ),
        (
            lambda c: random_pressure(c, tp.Directions({SITE: torch.ones(32)}), count=0),
            UsageError,
            "count must be at least 1",
        ),
        (
            lambda c: random_pressure(c, tp.Directions({SITE: torch.ones(32)}), groups=["a"]),
            UsageError,
            r"one label a chat \(8\)",
        ),
        (
            lambda c: random_pressure(c, tp.Directions({SITE: torch.eye(32)[:2]})),
            UsageError,
            "one direction a site, found 2",
        ),
        (
            lambda c: random_pressure(c, tp.Directions({SITE: torch.ones(32)}), kind="covariance"),
            DirectionsError,
            "which these directions do not carry",
        ),
    ],
)
def test_what_does_not_fit_is_refused(cache, call, error, message):
    with pytest.raises(error, match=message):
        call(cache)


def test_peak_memory_of_pressure_is_one_chunk(tmp_path, tokenizer):
    """A folder's cache stays on disk: the tensor is a private mapping of the shard."""
    model = tiny.model()
    cache = tp.collect_gradients(model, tokenizer, chats(), [SITE], folder=tmp_path)
    before = (tmp_path / "resid_post.1.safetensors").read_bytes()
    cache.gradients[SITE][0] = 0
    assert (tmp_path / "resid_post.1.safetensors").read_bytes() == before
