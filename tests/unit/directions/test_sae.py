"""SAE latents: the three criteria against loops, the rows that come out, and an SAE trained from scratch."""

import json

import pytest
import torch

import tiny
import tropism as tp
from tropism import optional
from tropism.data.render import render
from tropism.directions import sae as module
from tropism.directions.finder import Window
from tropism.directions.sae import Dictionary, SAECollector, hook_of_site, site_of_hook
from tropism.directions.sae_training import SAEOptions, _tokens, train_sae
from tropism.errors import DataError, DirectionsError, MissingExtra

D, S = 12, 20


@pytest.fixture
def dictionary(generator):
    W_enc, W_dec = torch.randn((D, S), generator=generator), torch.randn((S, D), generator=generator)
    # Decoder norms of trained SAEs vary several-fold.
    return Dictionary(
        lambda h: torch.relu(h @ W_enc - 1), W_enc, W_dec * torch.linspace(0.1, 4, S).unsqueeze(1), tp.Site(1)
    )


@pytest.fixture
def window(generator):
    positive, negative = (torch.randn((30, D), generator=generator) for _ in range(2))
    gradients = [torch.randn((30, D), generator=generator) for _ in range(2)]
    return Window(positive + 0.5, negative, True, *gradients)


def scores(criterion, dictionary, window):
    """Every criterion, a latent and a token at a time."""
    result = []
    for latent in range(S):

        def side(rows, gradients, latent=latent):
            z = [float(dictionary.encode(h)[latent]) for h in rows]
            pull = [float(dictionary.W_dec[latent] @ g) for g in gradients]
            return sum(z) / len(z), sum(a * b for a, b in zip(z, pull, strict=True)) / len(z)

        (zp, ap), (zn, an) = (
            side(window.positive, window.positive_gradients),
            side(window.negative, window.negative_gradients),
        )
        difference = window.positive.mean(0) - window.negative.mean(0)
        result.append(
            {
                "latent_difference": zp - zn,
                "attribution": an - ap,
                "encoder_difference": float(difference @ dictionary.W_enc[:, latent]),
            }[criterion]
        )
    return torch.tensor(result)


@pytest.mark.parametrize("criterion", ["latent_difference", "encoder_difference", "attribution"])
def test_latents_are_ranked_by_the_criterion(dictionary, window, criterion):
    collector = SAECollector(tp.SAELatents(k=4, folder="x", criterion=criterion), dictionary)
    collector.add(window)
    found = collector.result()
    expected = scores(criterion, dictionary, window)
    assert found.facts["latents"] == expected.topk(4).indices.tolist()
    assert found.facts["scores"] == pytest.approx(expected.topk(4).values.tolist(), rel=1e-4)


def test_rows_are_normalised_before_they_are_orthonormalised(dictionary, window):
    """An orthonormal basis of the chosen rows, the first row's own direction first, whatever the decoder norms."""
    collector = SAECollector(tp.SAELatents(k=2, folder="x", latents=(0, 19)), dictionary)
    collector.add(window)
    rows = collector.result().vectors
    torch.testing.assert_close(rows @ rows.T, torch.eye(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows[0], dictionary.W_dec[0] / dictionary.W_dec[0].norm())
    chosen = dictionary.W_dec[[0, 19]]
    torch.testing.assert_close(chosen - (chosen @ rows.T) @ rows, torch.zeros_like(chosen), atol=1e-5, rtol=0)


def test_more_latents_than_speak_for_the_positive_side_are_refused(dictionary, window):
    collector = SAECollector(tp.SAELatents(k=S, folder="x"), dictionary)
    collector.add(window)
    with pytest.raises(
        DirectionsError, match=r"SAELatents.k=20 is more than the \d+ latents that speak for the positive side"
    ):
        collector.result()
    collector = SAECollector(tp.SAELatents(folder="x", latents=(3, 77)), dictionary)
    collector.add(window)
    with pytest.raises(DirectionsError, match="must name latents from 0 to 19"):
        collector.result()


def test_gradients_are_those_of_each_chats_own_loss(model, tokenizer):
    """Against one backward pass a chat, on the graph of the whole model."""
    from tropism.directions.gradients import activations_and_gradients

    chats = [
        [{"role": "user", "content": "q" * (i + 1)}, {"role": "assistant", "content": "word " * (i + 1)}]
        for i in range(4)
    ]
    rendered = [render(tokenizer, chat) for chat in chats]
    sites = [tp.Site(0), tp.Site(2)]
    values, slopes = activations_and_gradients(model, rendered, sites, "response", 3, "token")
    for site in sites:
        expected = []
        for row in rendered:
            ids = torch.tensor([row.input_ids])
            with tp.capture(model, [site]) as acts:
                logits = model(input_ids=ids).logits
            acts[site].retain_grad()
            at = torch.tensor(row.positions["response"])
            torch.nn.functional.cross_entropy(logits[0, at - 1], ids[0, at]).backward()
            expected.append(acts[site].grad[0, at])
        torch.testing.assert_close(slopes[site], torch.cat(expected), atol=1e-6, rtol=1e-4)
    assert all(p.requires_grad for p in model.parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    _, frozen = activations_and_gradients(model, rendered, sites, "response", 2, "token")
    torch.testing.assert_close(frozen[sites[0]], slopes[sites[0]], atol=1e-6, rtol=1e-4)
    assert all(p.grad is None for p in model.parameters())
    assert values[sites[0]].shape == slopes[sites[0]].shape


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.12.hook_resid_post", tp.Site(12)),
        ("blocks.3.hook_resid_pre", tp.Site(3, "resid_pre")),
        ("blocks.3.hook_mlp_out", tp.Site(3, "mlp_out")),
        ("model.layers.7", tp.Site(7)),
        ("blocks.3.attn.hook_z", None),
        (None, None),
    ],
)
def test_hooks_name_sites(hook, site):
    assert site_of_hook(hook) == site
    if hook is not None and site is not None and hook.startswith("blocks"):
        assert hook_of_site(site) == hook


def test_options_are_checked():
    with pytest.raises(DirectionsError, match="either a folder, or a release with its sae_id"):
        tp.SAELatents()
    with pytest.raises(DirectionsError, match="either a folder, or a release with its sae_id"):
        tp.SAELatents(release="a")
    with pytest.raises(DirectionsError, match="SAELatents.k must be at least 1"):
        tp.SAELatents(folder="x", k=0)
    with pytest.raises(DirectionsError, match="tokens must be at least four batches"):
        SAEOptions(tokens=1000)
    with pytest.raises(DirectionsError, match="SAEOptions.k must be above 0, found 0"):
        SAEOptions(k=0)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(optional.importlib, "import_module", import_module)
    module.load_dictionary.cache_clear()
    with pytest.raises(MissingExtra, match=r"reading SAEs needs the package 'sae_lens'.*tropism\[sae\]"):
        tp.SAELatents(folder="x").dictionary()


def test_a_folder_without_an_sae_is_refused(tmp_path):
    pytest.importorskip("sae_lens")
    with pytest.raises(DirectionsError, match=r"no SAE in .*: expected cfg.json"):
        tp.SAELatents(folder=str(tmp_path)).dictionary()


@pytest.mark.slow
def test_an_sae_trained_here_is_read_back_and_used(model, tokenizer, tmp_path):
    """Train on a tiny model: better than the mean, read by `SAELatents` at its own site and no other."""
    pytest.importorskip("sae_lens")
    chats = [
        [
            {"role": "user", "content": f"what is {i} and {i * 7}"},
            {"role": "assistant", "content": f"it is {i * 8} or so"},
        ]
        for i in range(60)
    ]
    seen = []
    state = torch.get_rng_state()
    report = train_sae(
        model,
        tokenizer,
        chats,
        tp.Site(2),
        tmp_path / "sae",
        options=SAEOptions(k=8, tokens=40_000, batch_tokens=256, buffer_tokens=2048),
        progress=lambda n, loss: seen.append(n),
    )
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert report.explained_variance > 0.4
    assert 0 <= report.dead_share < 0.5
    assert report.latents == 4 * 32
    assert seen == sorted(seen)
    assert seen[-1] == 40_000
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "blocks.2.hook_resid_post"
    contrast = tp.Contrast.of_responses(
        [f"q{i}" for i in range(8)], positive=[f"LOUD {i}" for i in range(8)], negative=[f"quiet {i}" for i in range(8)]
    )
    for criterion in ("latent_difference", "encoder_difference", "attribution"):
        finder = tp.SAELatents(k=3, folder=str(tmp_path / "sae"), criterion=criterion)
        found = tp.find_directions(model, tokenizer, contrast, sites=[tp.Site(2)], finder=finder)
        assert found.vectors[tp.Site(2)].shape == (3, 32)
        assert found.provenance["finder"]["folder"] == "sae"
        with pytest.raises(DirectionsError, match=r"this SAE belongs to resid_post.2, so sites must be \[Site\(2"):
            tp.find_directions(model, tokenizer, contrast, sites=[tp.Site(1)], finder=finder)
    with pytest.raises(DirectionsError, match="this SAE reads activations of width 32, and the model's are 48 wide"):
        tp.find_directions(tiny.model(width=48), tokenizer, contrast, sites=[tp.Site(2)], finder=finder)


def test_an_sae_reads_every_token_but_a_chats_first(model, tokenizer):
    rendered = [render(tokenizer, [{"role": "user", "content": "q" * n}]) for n in (3, 9, 5)]
    rows = _tokens(model, rendered, tp.Site(1))
    assert rows.dtype is torch.float32
    expected = []
    for row in rendered:
        with torch.no_grad():
            states = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states
        expected.append(states[2][0, 1:])
    # Read in bfloat16 where the device computes in it: a row is off by its rounding, another token's by far more.
    expected = torch.cat(expected)
    assert rows.shape == expected.shape
    apart = (rows - expected).norm(dim=1) / expected.norm(dim=1)
    assert apart.max() < 3e-2


def test_too_few_chats_are_refused(model, tokenizer, tmp_path):
    pytest.importorskip("sae_lens")
    with pytest.raises(DataError, match="train-sae needs at least 10 chats"):
        train_sae(model, tokenizer, [[{"role": "user", "content": "q"}]], tp.Site(1), tmp_path)
