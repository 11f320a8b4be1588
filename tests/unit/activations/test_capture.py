"""Capture against activations put together by hand."""

import pytest
import torch

import architectures
import tiny
import tropism as tp
from tropism.activations.positions import _READERS
from tropism.errors import SiteError, UsageError

SITES = [tp.Site(0), tp.Site(2), tp.Site(1, "mlp_out")]


@pytest.fixture
def batches():
    """Two batches of unlike lengths, padded on the right."""
    found = []
    for seed, (rows, tokens) in enumerate([(3, 9), (2, 5)]):
        batch = tiny.batch(rows, tokens, seed)
        batch["attention_mask"][0, -2:] = 0
        batch["labels"][0, -2:] = -100
        found.append(batch)
    return found


def by_hand(model, batch, site):
    with tp.capture(model, [site]) as acts, torch.no_grad():
        model(**batch)
    return acts[site]


def test_the_latest_pass_as_the_model_computed_it(model):
    batch = tiny.batch()
    with tp.capture(model, SITES) as acts:
        assert list(acts) == []
        loss = model(**batch).loss
    assert set(acts) == set(SITES)
    assert acts[tp.Site(0)].shape == (3, 9, 32)
    gradients = torch.autograd.grad(loss, [acts[site] for site in SITES])  # they are on the graph
    assert all(float(g.abs().max()) > 0 for g in gradients)
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(acts[tp.Site(0)], model(**batch, output_hidden_states=True).hidden_states[1])


def test_what_the_model_overwrites_stays_as_it_was():
    """Falcon adds attention to the MLP's output in place."""
    model, batch = architectures.build("falcon"), architectures.batch()
    site = tp.Site(1, "mlp_out")
    with tp.capture(model, [site]) as acts:
        loss = model(**batch).loss
    h, seen = acts[site].detach().clone(), []
    handle = tp.decoder_layers(model)[1].mlp.register_forward_hook(lambda _m, _a, out: seen.append(out.clone()))
    assert torch.equal(model(**batch).loss, loss)
    handle.remove()
    assert torch.equal(seen[0], h)


def test_every_token_that_is_not_padding(model, batches):
    with tp.capture(model, SITES, positions="all") as acts, torch.no_grad():
        for batch in batches:
            model(**batch)
    for site in SITES:
        wanted = torch.cat([by_hand(model, batch, site)[batch["attention_mask"].bool()] for batch in batches])
        assert torch.equal(acts[site], wanted)
        assert acts[site].shape == (3 * 9 + 2 * 5 - 4, 32)


@pytest.mark.parametrize("positions", ["response", "first_response", "last_prompt"])
def test_named_positions(model, batches, positions):
    with tp.capture(model, SITES, positions=positions) as acts, torch.no_grad():
        for batch in batches:
            model(**batch)
    for site in SITES:
        rows = []
        for batch in batches:
            h = by_hand(model, batch, site)
            for row, labels in zip(h, batch["labels"], strict=True):
                on = (labels != -100).nonzero().squeeze(1).tolist()
                rows += [
                    row[i] for i in {"response": on, "first_response": on[:1], "last_prompt": [on[0] - 1]}[positions]
                ]
        assert torch.equal(acts[site], torch.stack(rows))


def test_the_last_of_several_responses(model):
    batch = tiny.batch(1, 9)
    batch["response_mask"] = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0, 0]])
    h = by_hand(model, {key: value for key, value in batch.items() if key != "response_mask"}, tp.Site(0))
    for positions, index in (("first_response", 5), ("last_prompt", 4)):
        with tp.capture(model, [tp.Site(0)], positions=positions) as acts, torch.no_grad():
            model(**batch)
        assert torch.equal(acts[tp.Site(0)], h[0, index : index + 1])


def test_one_mean_an_example(model, batches):
    with tp.capture(model, SITES, positions="response", reduce="example") as acts, torch.no_grad():
        for batch in batches:
            model(**batch)
    for site in SITES:
        rows = [
            row[labels != -100].mean(dim=0)
            for batch in batches
            for row, labels in zip(by_hand(model, batch, site), batch["labels"], strict=True)
        ]
        torch.testing.assert_close(acts[site], torch.stack(rows), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("positions", ["all", "response"])
def test_the_mean_over_all_does_not_depend_on_batching(model, batches, positions):
    with tp.capture(model, SITES, positions=positions) as rows, torch.no_grad():
        for batch in batches:
            model(**batch)
    means = tp.mean_activations(model, batches, SITES, positions)
    one_by_one = [{key: value[i : i + 1] for key, value in b.items()} for b in batches for i in range(len(b["labels"]))]
    again = tp.mean_activations(model, one_by_one, SITES, positions)
    for site in SITES:
        torch.testing.assert_close(means[site], rows[site].double().mean(dim=0).float(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(means[site], again[site], atol=1e-6, rtol=1e-5)


def test_a_mean_keeps_one_vector_a_site_whatever_the_number_of_passes(model):
    with tp.capture(model, SITES, reduce="mean") as acts, torch.no_grad():
        sizes = []
        for seed in range(3):
            model(**tiny.batch(seed=seed))
            sizes.append(sum(total.numel() for total in acts._sums.values()))
    assert sizes == [len(SITES) * 32] * 3


def test_half_precision_is_accumulated_in_float64():
    model = tiny.model(dtype=torch.bfloat16)
    batch = tiny.batch()
    with tp.capture(model, [tp.Site(1)], positions="all") as rows, torch.no_grad():
        model(**batch)
    assert rows[tp.Site(1)].dtype == torch.float32
    means = tp.mean_activations(model, [batch] * 50, [tp.Site(1)])
    torch.testing.assert_close(means[tp.Site(1)], rows[tp.Site(1)].mean(dim=0), atol=1e-6, rtol=1e-5)


def test_padding_masks_given_by_position_count(model):
    batch = tiny.batch(1, 6)
    batch["attention_mask"][0, -2:] = 0
    with tp.capture(model, [tp.Site(0)], positions="all") as acts, torch.no_grad():
        model(batch["input_ids"], batch["attention_mask"])
    assert acts[tp.Site(0)].shape == (4, 32)


def test_generation_is_captured_token_by_token(model):
    with tp.capture(model.eval(), [tp.Site(0)], positions="all") as acts:
        model.generate(torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3), max_new_tokens=4, min_new_tokens=4)
    assert acts[tp.Site(0)].shape == (3 + 3, 32)  # the last new token is never read


def test_hooks_are_gone_after_an_exception(model):
    with pytest.raises(ZeroDivisionError), tp.capture(model, SITES, reduce="mean"):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model not in _READERS


def test_what_capture_says_to_the_user(model):
    with tp.capture(model, SITES) as acts:
        pass
    with pytest.raises(
        UsageError, match=r"nothing was read at resid_post.0 \(captured: resid_post.0, resid_post.2, mlp_out.1"
    ):
        acts[tp.Site(0)]
    with (
        pytest.raises(SiteError, match="resid_post.7 is past the last block"),
        tp.capture(model, [tp.Site(0), tp.Site(7)]),
    ):
        pass
    assert not any(m._forward_hooks for m in model.modules())
    batch = tiny.batch()
    batch["labels"][1] = -100
    with (
        pytest.raises(UsageError, match="needs a 'response' token in every row, found none in row 1"),
        tp.capture(model, SITES, positions="response", reduce="example"),
    ):
        model(**batch)
