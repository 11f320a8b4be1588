"""A loaded adapter computes what the saved one did, or is refused by name; a refused one leaves the model as it was."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import adapter_kinds
import architectures
import tiny
from tropism import models
from tropism.adapters.kinds import KINDS
from tropism.errors import ModelError

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize("name", adapter_kinds.NAMES)
def test_every_kind_computes_what_was_saved_or_is_refused_by_name(name, tmp_path):
    example = adapter_kinds.EXAMPLES[name]
    saved = adapter_kinds.make(name)
    adapter_kinds.save(saved, tmp_path)
    base = example.model()
    with adapter_kinds.quiet():
        if "load" not in KINDS[example.kind].exact:
            with pytest.raises(ModelError, match="the adapter has .* and cannot be loaded: "):
                models.load_adapter(base, tmp_path)
            assert torch.equal(adapter_kinds.logits(base), adapter_kinds.logits(example.model()))
            return
        loaded = models.load_adapter(base, tmp_path)
    torch.testing.assert_close(adapter_kinds.logits(loaded), adapter_kinds.logits(saved))
    away = (adapter_kinds.logits(saved) - adapter_kinds.logits(example.model())).abs().max()
    assert away > 1e-3, "an adapter that does nothing tests nothing"


@pytest.fixture
def folder(tmp_path):
    adapter_kinds.save(adapter_kinds.make("lora"), tmp_path / "adapter")
    return tmp_path / "adapter"


def damage(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS, metadata={"format": "pt"})


def edit_config(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def half(tensors):
    return dict(sorted(tensors.items())[::2])


def one_layer(tensors):
    return {key: tensor for key, tensor in tensors.items() if ".layers.2." not in key}


def of_a_wrapper(tensors):
    return {
        key.replace("base_model.model.model.", "base_model.model.model.language_model."): t
        for key, t in tensors.items()
    }


def with_one_more(tensors):
    return tensors | {"base_model.model.model.layers.9.mlp.down_proj.lora_A.weight": torch.zeros(4, 64)}


def as_transformers_saves(tensors):
    return {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (half, r"found 8 missing and 0 that fit nowhere, of 8 \(first 'model.layers.0.self_attn.q_proj.lora_B.weight'"),
        (one_layer, r"found 4 missing and 0 that fit nowhere"),
        (of_a_wrapper, r"found 16 missing and 16 that fit nowhere, of 16"),
        (with_one_more, r"found 0 missing and 1 that fit nowhere, of 17 \(first 'model.layers.9"),
        (lambda tensors: {}, r"found 16 missing"),
    ],
)
def test_tensors_that_do_not_match_are_refused_and_the_model_stays_as_it_was(folder, change, message):
    damage(folder, change)
    base = tiny.model()
    with pytest.raises(ModelError, match=message):
        models.load_adapter(base, folder)
    assert [name for name, _ in base.named_parameters()] == [name for name, _ in tiny.model().named_parameters()]
    assert torch.equal(adapter_kinds.logits(base), adapter_kinds.logits(tiny.model()))
    again = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"])
    )  # and can be adapted again, without a warning
    assert isinstance(again, PeftModel)


@pytest.mark.parametrize("kind", ["modules_to_save", "tokens", "bias", "embedding", "dora", "vera", "ia3", "adalora"])
def test_a_missing_tensor_of_any_kind_is_refused(kind, tmp_path):
    adapter_kinds.save(adapter_kinds.make(kind), tmp_path)
    for key in load_file(tmp_path / WEIGHTS):
        lacking = tmp_path / "lacking"
        shutil.copytree(tmp_path, lacking, ignore=lambda *_: ["lacking"], dirs_exist_ok=True)
        damage(lacking, lambda tensors, key=key: {k: t for k, t in tensors.items() if k != key})
        with adapter_kinds.quiet():
            if key == "base_model.vera_B":  # drawn again from the seed in the configuration
                loaded = models.load_adapter(adapter_kinds.EXAMPLES[kind].model(), lacking)
                assert torch.equal(adapter_kinds.logits(loaded), adapter_kinds.logits(adapter_kinds.make(kind)))
                continue
            with pytest.raises(ModelError, match="missing|not present"):
                models.load_adapter(adapter_kinds.EXAMPLES[kind].model(), lacking)


def test_an_adapter_of_a_wider_model_is_a_sentence(folder):
    with pytest.raises(
        ModelError, match=r"its tensor .*lora_[AB].weight has shape \[.*\], this model's adapter \[.*another size"
    ):
        models.load_adapter(tiny.model(width=64), folder)
    with pytest.raises(ModelError, match="missing|nowhere"):
        models.load_adapter(tiny.model(layers=6), folder)


def test_an_adapter_of_another_architecture_is_a_sentence(folder):
    with pytest.raises(ModelError, match=r"adapter .* does not fit this model: Target modules .* not found"):
        models.load_adapter(architectures.build("gpt2", dtype=torch.float32), folder)


def test_an_adapter_of_another_base_model_is_refused(folder):
    base = tiny.model()
    base.config._name_or_path = "someone/tiny-b"
    edit_config(folder, base_model_name_or_path="someone/tiny-a")
    with pytest.raises(ModelError, match="was trained on 'someone/tiny-a', the model is 'someone/tiny-b'; load it on"):
        models.load_adapter(base, folder)
    assert isinstance(models.load_adapter(base, folder, any_base=True), PeftModel)


@pytest.mark.parametrize(
    "name",
    ["someone/Tiny-B", "/home/her/models/tiny-b/", "/cache/hub/models--someone--tiny-b/snapshots/0123abc", None, ""],
)
def test_one_model_by_another_path_is_accepted(folder, name):
    base = tiny.model()
    base.config._name_or_path = "someone/tiny-b"
    edit_config(folder, base_model_name_or_path=name)
    assert isinstance(models.load_adapter(base, folder), PeftModel)


def test_a_second_adapter_is_added_beside_the_first(folder, tmp_path):
    model = models.load_adapter(tiny.model(), folder, name="one")
    models.load_adapter(model, folder, name="two")
    model.set_adapter("two")
    torch.testing.assert_close(adapter_kinds.logits(model), adapter_kinds.logits(adapter_kinds.make("lora")))
    with pytest.raises(ModelError, match="has an adapter 'two' already"):
        models.load_adapter(model, folder, name="two")
    damage(folder, half)
    with pytest.raises(ModelError, match="found 8 missing"):
        models.load_adapter(model, folder, name="three")
    assert list(model.peft_config) == ["one", "two"]
    adapter_kinds.save(adapter_kinds.make("pissa"), tmp_path / "pissa")
    with pytest.raises(ModelError, match="'pissa' changes the base weights, under the adapters one, two"):
        models.load_adapter(model, tmp_path / "pissa", name="three")


def test_trainable_or_not(folder):
    frozen = models.load_adapter(tiny.model(), folder)
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    trainable = models.load_adapter(tiny.model(), folder, trainable=True)
    assert trainable.training
    assert all(p.requires_grad == ("lora_" in name) for name, p in trainable.named_parameters())


def test_files_that_cannot_be_read_are_sentences(folder, tmp_path):
    with pytest.raises(ModelError, match="nowhere.* is neither a folder nor a hub name OWNER/NAME"):
        models.load_adapter(tiny.model(), tmp_path / "nowhere")
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="is damaged"):
        models.load_adapter(tiny.model(), folder)
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(
        ModelError, match=r"adapter_model.safetensors is missing .*pickled .bin adapters are not opened"
    ):
        models.load_adapter(tiny.model(), folder)
    (folder / WEIGHTS).write_bytes(whole)
    (folder / "adapter_config.json").write_text('{"peft_type": 3}')
    with pytest.raises(ModelError, match="must be an object with a peft_type"):
        models.load_adapter(tiny.model(), folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LATER_METHOD"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.load_adapter(tiny.model(), folder)


def test_a_conversion_of_pissa_to_lora_loads_on_the_untouched_model(tmp_path):
    model = adapter_kinds.make("pissa", fresh=True)
    adapter_kinds.save(model, tmp_path / "start")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        adapter_kinds.move(model)
    with adapter_kinds.quiet():
        model.save_pretrained(str(tmp_path / "plain"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    loaded = models.load_adapter(tiny.model(), tmp_path / "plain")
    torch.testing.assert_close(adapter_kinds.logits(loaded), adapter_kinds.logits(model), atol=1e-4, rtol=1e-4)
