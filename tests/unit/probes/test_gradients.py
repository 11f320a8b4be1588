"""`collect_gradients`: exact per chat, whatever the batch; the model is left as it was; bad input is named."""

import copy

import pytest
import torch
from torch.func import functional_call, grad

import tiny
import tropism as tp
from gradient_cases import chats
from tropism.data.chats import Example
from tropism.errors import DataError, RunFolderError, SiteError, UsageError
from tropism.probes.gradient_cache import GradientCache
from tropism.probes.pressure import pressure


def oracle(model, tokenizer, chat, site, positions="response"):
    """One chat at a time: transformers' own loss, an ordinary backward pass, the gradient kept at the block."""
    row = tp.render(tokenizer, chat)
    ids = torch.tensor([row.input_ids])
    labels = torch.where(torch.tensor([row.response_mask]), ids, -100)
    kept = []
    model = copy.deepcopy(model).eval()
    block = tp.decoder_layers(model)[site.layer]
    handle = block.register_forward_hook(lambda _m, _a, out: (out.retain_grad(), kept.append(out))[0])
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    handle.remove()
    return kept[0].grad[0, row.positions[positions]].mean(0), loss.detach()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("positions", ["response", "last_prompt", "first_response", "all"])
def test_batches_of_8_equal_one_chat_at_a_time(model, tokenizer, side, positions):
    sites = tp.sites(model, "all")
    cache = tp.collect_gradients(model, tokenizer, chats(), sites, positions, 8, padding_side=side)
    for i, chat in enumerate(chats()):
        for site in sites:
            wanted, loss = oracle(model, tokenizer, chat, site, positions)
            found = cache.gradients[site][i]
            assert torch.cosine_similarity(found, wanted, dim=0) > 0.99999
            assert torch.isclose(found.norm(), wanted.norm(), rtol=1e-4)
            assert torch.isclose(cache.losses[i], loss, rtol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_batch_size_changes_nothing(model, tokenizer, side):
    # In float64, since two batch shapes take two kernels, whose float32 rounding differs from processor to processor.
    model = model.double()
    sites = tp.sites(model, "all")
    whole = tp.collect_gradients(model, tokenizer, chats(), sites, batch_size=8, padding_side=side)
    single = tp.collect_gradients(model, tokenizer, chats(), sites, batch_size=1)
    for site in sites:
        assert whole.gradients[site].shape == (8, 32)
        assert whole.gradients[site].dtype == torch.float32
        cosine = torch.cosine_similarity(whole.gradients[site], single.gradients[site], dim=1)
        live = single.gradients[site].norm(dim=1) > 0
        assert (cosine[live] > 0.99999).all()
        torch.testing.assert_close(whole.gradients[site], single.gradients[site], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(whole.losses, single.losses)


def test_equals_torch_func_per_example_gradients(tokenizer):
    """`torch.func.grad` with respect to a perturbation added to the stream, in float64."""
    model = tiny.model(dtype=torch.float64).eval()
    site = tp.Site(1)
    block = tp.decoder_layers(model)[1]
    cache = tp.collect_gradients(model, tokenizer, chats(), [site], "all")
    for i, chat in enumerate(chats()):
        row = tp.render(tokenizer, chat)
        ids = torch.tensor([row.input_ids])
        labels = torch.where(torch.tensor([row.response_mask]), ids, -100)

        def loss(delta, ids=ids, labels=labels):
            handle = block.register_forward_hook(lambda _m, _a, out: out + delta)
            try:
                return functional_call(model, dict(model.named_parameters()), (ids,), {"labels": labels}).loss
            finally:
                handle.remove()

        wanted = grad(loss)(torch.zeros(1, ids.shape[1], 32, dtype=torch.float64))[0].mean(0).float()
        torch.testing.assert_close(cache.gradients[site][i], wanted, rtol=1e-5, atol=1e-9)


def test_per_token_rows_average_to_the_pooled_gradient(model, tokenizer):
    site = tp.Site(2)
    pooled = tp.collect_gradients(model, tokenizer, chats(), [site])
    tokens = tp.collect_gradients(model, tokenizer, chats(), [site], per_token=True)
    assert tokens.gradients[site].shape[0] == int(tokens.response_tokens.sum())
    for i, chat in enumerate(chats()):
        mine = tokens.row_chat == i
        assert tokens.row_token[mine].tolist() == tp.render(tokenizer, chat).positions["response"]
        torch.testing.assert_close(tokens.gradients[site][mine].mean(0), pooled.gradients[site][i])
    table = pressure(tokens, tp.Directions({site: torch.ones(32)}))
    assert len(table) == len(tokens.row_chat)
    assert set(table.columns) >= {"chat", "token", "pressure"}


@pytest.mark.parametrize("stream", ["resid_pre", "attn_out", "mlp_out"])
def test_every_stream_of_the_block(model, tokenizer, stream):
    """With the lowest site cut from the graph, the sites above it still get their own gradients."""
    several = tp.collect_gradients(model, tokenizer, chats(3), [tp.Site(1, stream), tp.Site(1), tp.Site(2)])
    for site in several.sites:
        alone = tp.collect_gradients(model, tokenizer, chats(3), [site])
        torch.testing.assert_close(several.gradients[site], alone.gradients[site])
    before = tp.collect_gradients(model, tokenizer, chats(3), [tp.Site(0)])
    same_place = tp.collect_gradients(model, tokenizer, chats(3), [tp.Site(1, "resid_pre")])
    torch.testing.assert_close(before.gradients[tp.Site(0)], same_place.gradients[tp.Site(1, "resid_pre")])


def test_checkpointing_changes_nothing(model, tokenizer):
    wanted = tp.collect_gradients(model, tokenizer, chats(), [tp.Site(1)])
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = tp.collect_gradients(model, tokenizer, chats(), [tp.Site(1)])
    torch.testing.assert_close(found.gradients[tp.Site(1)], wanted.gradients[tp.Site(1)])
    assert model.is_gradient_checkpointing


def test_autocast_and_bfloat16_keep_losses_and_gradients_in_float32(tokenizer):
    wanted = tp.collect_gradients(tiny.model(), tokenizer, chats(), [tp.Site(1)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tp.collect_gradients(tiny.model(), tokenizer, chats(), [tp.Site(1)])
    half = tp.collect_gradients(tiny.model(dtype=torch.bfloat16), tokenizer, chats(), [tp.Site(1)])
    for found in (cast, half):
        assert found.gradients[tp.Site(1)].dtype == found.losses.dtype == torch.float32
        cosine = torch.cosine_similarity(found.gradients[tp.Site(1)], wanted.gradients[tp.Site(1)], dim=1)
        assert (cosine > 0.95).all()
    # losses below bfloat16's spacing differ from each other: the reduction was not made in bfloat16
    assert not torch.equal(cast.losses, cast.losses.bfloat16().float())


def test_float16_gradients_are_scaled_back(tokenizer):
    wanted = tp.collect_gradients(tiny.model(), tokenizer, chats(), [tp.Site(1)])
    found = tp.collect_gradients(tiny.model(dtype=torch.float16), tokenizer, chats(), [tp.Site(1)])
    ratio = found.gradients[tp.Site(1)].norm(dim=1) / wanted.gradients[tp.Site(1)].norm(dim=1)
    assert ((ratio - 1).abs() < 0.05).all()


def test_the_model_is_left_as_it_was_also_after_an_error(model, tokenizer):
    model.train()
    tp.decoder_layers(model)[0].eval()
    model.get_input_embeddings().weight.requires_grad_(False)
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    training = [m.training for m in model.modules()]
    tp.collect_gradients(model, tokenizer, chats(), [tp.Site(1)])
    with torch.no_grad():
        tp.collect_gradients(model, tokenizer, chats(), [tp.Site(1)])
    weight = tp.decoder_layers(model)[3].mlp.down_proj.weight
    whole = weight.data.clone()
    weight.data.fill_(float("nan"))
    with pytest.raises(DataError):
        tp.collect_gradients(model, tokenizer, chats(), [tp.Site(1)])
    weight.data.copy_(whole)
    assert [(p.requires_grad, p.grad is None) for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_lora_adapter_is_measured_as_it_stands(model, tokenizer):
    from peft import LoraConfig, get_peft_model

    plain = tp.collect_gradients(model, tokenizer, chats(), [tp.Site(1)])
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["down_proj"], lora_dropout=0.5))
    fresh = tp.collect_gradients(peft_model, tokenizer, chats(), [tp.Site(1)])
    torch.testing.assert_close(fresh.gradients[tp.Site(1)], plain.gradients[tp.Site(1)])
    trainable = [name for name, p in peft_model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    tuned = tp.collect_gradients(peft_model, tokenizer, chats(), [tp.Site(1)])
    assert not torch.allclose(tuned.gradients[tp.Site(1)], plain.gradients[tp.Site(1)])
    assert tuned.manifest["model"] != fresh.manifest["model"]
    again = tp.collect_gradients(peft_model.train(), tokenizer, chats(), [tp.Site(1)])
    assert torch.equal(again.gradients[tp.Site(1)], tuned.gradients[tp.Site(1)])  # no dropout while measuring
    with peft_model.disable_adapter():
        off = tp.collect_gradients(peft_model, tokenizer, chats(), [tp.Site(1)])
    torch.testing.assert_close(off.gradients[tp.Site(1)], plain.gradients[tp.Site(1)])
    assert off.manifest["model"] != tuned.manifest["model"]


def test_examples_keep_their_ids(model, tokenizer):
    examples = [Example(f"q{i}", tuple(chat)) for i, chat in enumerate(chats(3))]
    cache = tp.collect_gradients(model, tokenizer, examples, [tp.Site(0)])
    assert cache.chats == ("q0", "q1", "q2")
    assert list(cache.table.columns) == ["chat", "loss", "tokens", "response_tokens"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"chats": []}, DataError, "chats must hold at least one chat, found none"),
        ({"chats": [*chats(2), [{"role": "user", "content": "hi"}]]}, DataError, "chat 2 has no response"),
        ({"chats": [Example("a", tuple(chats()[0]))] * 2}, DataError, "found 'a' twice"),
        ({"sites": []}, SiteError, "at least one"),
        ({"sites": [tp.Site(1), tp.Site(1)]}, SiteError, "must be different sites"),
        ({"sites": [tp.Site(9)]}, SiteError, "resid_post.9 is past the last block"),
        ({"batch_size": 0}, UsageError, "batch_size must be at least 1, found 0"),
        (
            {"chats": [[{"role": "user", "content": "x" * 600}, chats()[0][1]]]},
            DataError,
            "over the model's 512 positions",
        ),
    ],
)
def test_bad_input_is_named(model, tokenizer, change, error, message):
    arguments = {"chats": chats(2), "sites": [tp.Site(1)]} | change
    with pytest.raises(error, match=message):
        tp.collect_gradients(model, tokenizer, **arguments)


def test_a_gradient_that_is_not_finite_names_its_chat(model, tokenizer):
    """The token "#" occurs in one chat only, and its embedding is broken."""
    examples = [Example(f"q{i}", tuple(chat)) for i, chat in enumerate(chats(4))]
    broken = ({"role": "user", "content": "#"}, {"role": "assistant", "content": "no"})
    examples[2] = Example("culprit", broken)
    token = tokenizer("#", add_special_tokens=False)["input_ids"][0]
    model.get_input_embeddings().weight.data[token] = float("nan")
    with pytest.raises(DataError, match=r"chat 'culprit': its (loss|gradient)"):
        tp.collect_gradients(model, tokenizer, examples, [tp.Site(1)])


def test_a_finite_loss_with_nan_gradient_names_chat_and_site(model, tokenizer):
    def poison(_module, _args, out):
        if out.requires_grad:
            out.register_hook(lambda g: torch.full_like(g, float("nan")))
        return out

    handle = tp.decoder_layers(model)[2].register_forward_hook(poison)
    with pytest.raises(DataError, match=r"chat \d: its gradient at resid_post.1 is not finite"):
        tp.collect_gradients(model, tokenizer, chats(2), [tp.Site(1)])
    handle.remove()


def test_folder_equals_memory_and_is_resumed(model, tokenizer, tmp_path, monkeypatch):
    from tropism.probes import gradients as module

    sites = tp.sites(model, "1,2")
    wanted = tp.collect_gradients(model, tokenizer, chats(), sites, batch_size=2)
    real, calls = module._batch, []

    def interrupted(*args):
        calls.append(len(args[1].rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tp.collect_gradients(model, tokenizer, chats(), sites, batch_size=2, folder=tmp_path / "c")
    with pytest.raises(RunFolderError, match="lacks 4 of 8 chats"):
        tp.GradientCache.load(tmp_path / "c")
    # a crash in the middle of a line: that chat does not count as finished
    table = tmp_path / "c" / "chats.csv"
    table.write_text(table.read_text(encoding="utf-8") + "7,1.25,45,1", encoding="utf-8")
    found = tp.collect_gradients(model, tokenizer, chats(), sites, batch_size=2, folder=tmp_path / "c")
    assert sum(calls) == 2 + 2 + 2 + 4
    for site in sites:
        torch.testing.assert_close(found.gradients[site], wanted.gradients[site], rtol=0, atol=0)
    torch.testing.assert_close(found.losses, wanted.losses, rtol=0, atol=0)
    again = tp.collect_gradients(model, tokenizer, chats(), sites, batch_size=2, folder=tmp_path / "c")
    assert sum(calls) == 10  # a finished cache runs no model
    assert again.chats == tp.GradientCache.load(tmp_path / "c").chats == tuple(range(8))


def test_shards_are_ordinary_safetensors(model, tokenizer, tmp_path):
    from safetensors.torch import load_file

    cache = tp.collect_gradients(model, tokenizer, chats(), [tp.Site(1)], folder=tmp_path, per_token=True)
    loaded = load_file(tmp_path / "resid_post.1.safetensors")["gradients"]
    assert torch.equal(loaded, cache.gradients[tp.Site(1)])
    assert tp.GradientCache.load(tmp_path).row_token.tolist() == cache.row_token.tolist()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model", "made with another model"),
        ("data", "made with other data"),
        ("positions", "another value of positions"),
    ],
)
def test_a_cache_of_something_else_is_refused(model, tokenizer, tmp_path, key, message):
    tp.collect_gradients(model, tokenizer, chats(), [tp.Site(1)], folder=tmp_path)
    if key == "model":
        model = tiny.model(seed=1)
    others = chats()
    if key == "data":
        others[3] = [others[3][0], {"role": "assistant", "content": "changed"}]
    positions = "all" if key == "positions" else "response"
    with pytest.raises(RunFolderError, match=message):
        tp.collect_gradients(model, tokenizer, others, [tp.Site(1)], positions, folder=tmp_path)


def test_a_damaged_cache_is_refused(model, tokenizer, tmp_path):
    with pytest.raises(RunFolderError, match="no gradient cache"):
        tp.GradientCache.load(tmp_path)
    tp.collect_gradients(model, tokenizer, chats(), [tp.Site(1)], folder=tmp_path)
    shard = tmp_path / "resid_post.1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(RunFolderError, match="damaged"):
        tp.GradientCache.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunFolderError, match="not the manifest of a gradient cache"):
        tp.GradientCache.load(tmp_path)


def test_a_flipped_bit_in_a_cache_is_noticed_and_that_chat_collected_again(tmp_path, caplog):
    model, tokenizer, folder = tiny.model().eval(), tiny.tokenizer(), tmp_path / "cache"
    chats = [
        [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]
        for n in range(5)
    ]
    sites = [tp.Site(0), tp.Site(2)]
    whole = tp.collect_gradients(model, tokenizer, chats, sites, folder=folder)
    expected = {site: whole.gradients[site].clone() for site in sites}
    shard = folder / "resid_post.2.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RunFolderError, match="lacks 1 of 5 chats"):
        GradientCache.load(folder)
    assert "1 of 5 chats were changed after they were written" in caplog.text
    again = tp.collect_gradients(model, tokenizer, chats, sites, folder=folder)
    assert all(torch.allclose(again.gradients[site], expected[site], atol=1e-6) for site in sites)
    assert GradientCache.load(folder).losses.shape == (5,)
