"""Sites, the resolver of decoder blocks, and layer selectors."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

import architectures
import tiny
import tropism as tp
import unchecked
from tropism import site
from tropism.errors import ModelError, SiteError
from tropism.site import base_model, select_layers, width


def test_a_site_and_its_text():
    assert str(tp.Site(12)) == "resid_post.12"
    assert tp.Site.parse("12") == tp.Site.parse(" resid_post.12 ") == tp.Site(12)
    assert tp.Site.parse("mlp_out.3") == tp.Site(3, "mlp_out")
    assert len({tp.Site(1), tp.Site(1), tp.Site(1, "resid_pre")}) == 2


@pytest.mark.parametrize("text", ["", "twelve", "resid.12", "-1", "resid_post.", "1.5", "²"])
def test_what_is_no_site(text):
    with pytest.raises(SiteError, match="a site is 'STREAM.LAYER' or 'LAYER'"):
        tp.Site.parse(text)


def test_sites_that_cannot_be():
    with pytest.raises(SiteError, match="at least 0.*found -1"):
        tp.Site(-1)
    with pytest.raises(SiteError, match="one of resid_pre, attn_out, mlp_out, resid_post, found 'resid'"):
        unchecked.build(tp.Site, 0, "resid")


@pytest.mark.parametrize(
    ("selector", "count", "layers"),
    [
        ("all", 3, [0, 1, 2]),
        ("8,12, 16", 30, [8, 12, 16]),
        ("16,8", 30, [8, 16]),
        ("25%..75%", 8, [2, 3, 4, 5]),
        ("0%..100%", 3, [0, 1, 2]),
        ("50%..100%", 4, [2, 3]),
        ("3 spread", 9, [2, 4, 7]),
        ("1 spread", 30, [15]),
        ("4 spread", 4, [0, 1, 2, 3]),
        ("29 spread", 30, list(range(1, 30))),
        ("12", 30, [12]),
    ],
)
def test_selectors(selector, count, layers):
    assert select_layers(selector, count) == layers


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12, 30, 61])
def test_a_spread_has_as_many_layers_as_asked_for(count):
    for n in range(1, count + 1):
        layers = select_layers(f"{n} spread", count)
        assert len(set(layers)) == n
        assert 0 <= layers[0] <= layers[-1] < count


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("9", "the model has blocks 0 to 3, found 9"),
        ("1,1", "names a layer twice"),
        ("5 spread", "takes 1 to 4"),
        ("75%..25%", "LOW < HIGH"),
        ("0%..120%", "LOW < HIGH <= 100"),
        ("30%..40%", "holds a layer"),
        ("some", "'all', '8,12,16', '25%..75%' or '3 spread', found 'some'"),
        ("", "found ''"),
    ],
)
def test_selectors_that_select_nothing(selector, message):
    with pytest.raises(SiteError, match=message):
        select_layers(selector, 4)


def test_sites_of_a_model(model):
    assert tp.sites(model, "25%..75%") == [tp.Site(1), tp.Site(2)]
    assert tp.sites(model, [0, 3], stream="attn_out") == [tp.Site(0, "attn_out"), tp.Site(3, "attn_out")]
    with pytest.raises(SiteError, match="blocks 0 to 3, found 4"):
        tp.sites(model, "4")


def test_wrappers_are_looked_through():
    plain, lora = architectures.build("llama"), architectures.build("llama", lora=True)
    assert tp.decoder_layers(plain) is plain.model.layers
    assert tp.decoder_layers(lora) is lora.base_model.model.model.layers
    assert base_model(nn.DataParallel(lora)) is lora.base_model.model
    assert base_model(torch.compile(plain, backend="eager")) is plain
    assert width(lora) == architectures.WIDTH


def test_experts_and_vision_layers_are_not_decoder_blocks():
    """Both have as many members as there are blocks."""
    moe = architectures.build("qwen3_moe", dtype=torch.float32)
    assert tp.decoder_layers(moe) is moe.model.layers
    multimodal = architectures.build("gemma3_multimodal")
    assert tp.decoder_layers(multimodal) is multimodal.model.language_model.layers


def test_ambiguity_lists_the_candidates_and_the_override():
    model = tiny.model()
    model.model.extra = nn.ModuleList(nn.Identity() for _ in range(4))
    with pytest.raises(
        ModelError,
        match=r"candidates: model.layers \(4\), model.extra \(4\)\); .*register_blocks\(LlamaForCausalLM, .*blocks: path",
    ):
        tp.decoder_layers(model)
    assert tp.decoder_layers(model, path="model.layers") is model.model.layers
    with pytest.raises(ModelError, match="has no submodule 'model.blocks'"):
        tp.decoder_layers(model, path="model.blocks")
    with pytest.raises(ModelError, match="'model.norm' must be a ModuleList, found LlamaRMSNorm"):
        tp.decoder_layers(model, path="model.norm")


def test_what_is_no_causal_language_model():
    with pytest.raises(ModelError, match="Linear has no config.*register_blocks"):
        tp.decoder_layers(nn.Linear(2, 2))


@pytest.fixture
def forgotten(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(site, "_REGISTERED", {})


def test_registered_blocks_are_those_of_everything_that_looks_for_them(forgotten, tokenizer):
    model = tiny.model()
    model.model.extra = nn.ModuleList(nn.Identity() for _ in range(4))
    with pytest.raises(ModelError, match="found 2"):
        tp.sites(model, "all")
    tp.register_blocks(type(model), "model.layers")
    assert tp.decoder_layers(model) is model.model.layers
    assert site.block_runner(model) is model.model
    d = tp.Directions({tp.Site(1): torch.ones(32)})
    chats = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]] * 2
    contrast = tp.Contrast.of_responses(["q", "r"], positive=["A", "B"], negative=["a", "b"])
    assert len(tp.sites(model, "all")) == 4
    assert tp.find_directions(model, tokenizer, contrast, sites=[tp.Site(1)]).width == 32
    assert len(tp.projection(model, tokenizer, chats, d, "response")) == 2
    assert len(tp.collect_gradients(model, tokenizer, chats, [tp.Site(1)]).losses) == 2
    for guard in (tp.Ablation(d, positions="response"), tp.GradientProjection(d), tp.Steering(d)):
        with guard.attach(model) as attachment, tp.capture(model, [tp.Site(1)]) as acts:
            model(**tiny.batch()).loss.backward()
            assert acts[tp.Site(1)].shape == (3, 9, 32)
        assert sum(attachment.fired.values()) == 1


def test_a_registration_holds_for_subclasses_and_in_peft(forgotten):
    model = tiny.model()
    tp.register_blocks(transformers.PreTrainedModel, "model.layers")
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert tp.decoder_layers(wrapped) is model.model.layers
    tp.register_blocks(type(model), "model.blocks")
    with pytest.raises(ModelError, match="LlamaForCausalLM has no submodule 'model.blocks'"):
        tp.decoder_layers(wrapped)


def test_what_cannot_be_registered():
    with pytest.raises(ModelError, match="model_class must be a class of models, found 'Llama'"):
        unchecked.call(tp.register_blocks, "Llama", "model.layers")
    with pytest.raises(ModelError, match="path must name a ModuleList, as in 'model.layers', found ''"):
        tp.register_blocks(nn.Module, "")


def test_the_runner_of_blocks_is_no_container():
    """GPT-like models written by hand keep their parts in a `ModuleDict`, which is never called."""
    inner = nn.Module()
    inner.transformer = nn.ModuleDict({"h": nn.ModuleList([nn.Identity(), nn.Identity()])})
    inner.config = transformers.LlamaConfig(num_hidden_layers=2)
    assert site.block_runner(inner) is inner
    model = architectures.build("gemma3_multimodal")
    assert site.block_runner(model) is model.model.language_model
