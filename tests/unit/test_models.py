"""Models: a folder, the embedded copy, or one sentence about why there is none."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers.utils import is_flash_attn_2_available

import tiny
import tiny_experiment
from tropism import models
from tropism.errors import ModelError
from tropism.models import loading


@pytest.fixture
def here(tmp_path):
    return tiny_experiment.model_folder(tmp_path)


def test_an_adapter_is_put_on_it(here, tmp_path):
    adapted = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    model, _ = models.load(str(here), adapter=tmp_path / "adapter", device="cpu", dtype="float32")
    assert isinstance(model, PeftModel)
    assert not model.training
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    held = get_peft_model_state_dict(model)
    assert saved
    assert all(torch.equal(saved[name], held[name]) for name in saved)
    with pytest.raises(ModelError, match="nowhere.* is neither a folder nor a hub name OWNER/NAME"):
        models.load(str(here), adapter="nowhere")


def test_a_local_folder_is_loaded_in_evaluation_mode(here):
    model, tokenizer = models.load(str(here), device="cpu")
    assert not model.training
    assert model.name_or_path == tokenizer.name_or_path == str(here)
    for name, parameter in tiny.model().named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "'./nowhere' is a path, and there is no such folder"),
        ("not a name", "neither a folder nor a hub name OWNER/NAME"),
        ("nobody/nothing", "model 'nobody/nothing' was not found: the hub is"),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence(name, message):
    with pytest.raises(ModelError, match=message):
        models.load(name)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is a folder without config.json"):
        models.load(str(tmp_path))


def test_a_folder_with_a_broken_config_is_refused(here):
    (here / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(ModelError, match="could not be loaded from the folder"):
        models.load(str(here))


@pytest.mark.parametrize(
    ("device", "message"),
    [("tpu", "device must be auto, cuda, mps or cpu, found 'tpu'"), ("mps", "torch sees none here")],
)
def test_a_device_that_is_not_there_is_refused(device, message):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has MPS")
    with pytest.raises(ModelError, match=message):
        models.pick_device(device)


@pytest.mark.parametrize(
    ("loading", "message"),
    [
        ({"device_map": "gpu"}, "load.device_map must name devices of this machine .* or auto, .*, found 'gpu'"),
        ({"device_map": {"": "cuda:99"}}, "load.device_map must name devices .*, found 'cuda:99'"),
        ({"device_map": "auto", "max_memory": {"99": "1GiB"}}, "load.max_memory must name devices .*, found '99'"),
        ({"attn_implementation": "flash_attention_2"}, "could not be loaded from the folder: .*FlashAttention2"),
    ],
)
def test_a_way_of_loading_that_this_machine_does_not_have_is_one_sentence(here, loading, message):
    if "attn_implementation" in loading and is_flash_attn_2_available():
        pytest.skip("this machine has flash attention")
    with pytest.raises(ModelError, match=message):
        models.load(str(here), device="cpu", loading=models.Loading(**loading))


def test_dtypes_by_name():
    assert models.pick_dtype("bfloat16", "cpu") is torch.bfloat16
    assert models.pick_dtype("auto", "cpu") is torch.float32
    with pytest.raises(ModelError, match="dtype must be auto, float32, bfloat16, float16, found 'int8'"):
        models.pick_dtype("int8", "cpu")


def test_the_token_comes_from_the_environment_or_a_dotenv_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert models.hub_token() is None
    (tmp_path / ".env").write_text("HF_TOKEN=from-file\nOTHER=x\n")
    assert models.hub_token() == "from-file"
    monkeypatch.setenv("HF_TOKEN", "from-environment")
    assert models.hub_token() == "from-environment"


@pytest.mark.real_model
class TestEmbedded:
    @pytest.fixture(autouse=True)
    def _there(self):
        if models.embedded.gguf() is None:
            pytest.skip(f"the package {models.EMBEDDED_PACKAGE} is not installed")

    def test_it_answers_for_smollm2_and_says_that_it_is_rounded(self):
        source = models.resolve(models.SMOLLM2)
        if source.kind == "hub":
            pytest.skip("the hub answers here")
        assert "rounded to 4 bits" in source.note
        assert "path" not in source.public()

    def test_it_is_no_longer_quantised(self):
        model, tokenizer = models.load(models.SMOLLM2)
        assert "quantization_config" not in model.config.to_dict()
        assert model.name_or_path == models.SMOLLM2
        assert model.config.num_hidden_layers == 30
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert tokenizer.chat_template

    def test_a_damaged_copy_is_noticed(self, tmp_path):
        for name in ("model.safetensors", "tokenizer.json"):
            (tmp_path / name).write_bytes(b"x")
        hashes = {name: models.embedded._sha256(tmp_path / name) for name in ("model.safetensors", "tokenizer.json")}
        (tmp_path / "tropism.json").write_text(json.dumps({"files": hashes}))
        assert models.embedded._intact(tmp_path)
        (tmp_path / "tokenizer.json").write_bytes(b"y")
        assert not models.embedded._intact(tmp_path)
        (tmp_path / "tropism.json").write_text(json.dumps({"sha256": hashes["model.safetensors"]}))
        assert not models.embedded._intact(tmp_path)


def test_blocks_are_registered_as_the_model_is_loaded(tmp_path, monkeypatch):
    from tropism import site

    monkeypatch.setattr(site, "_REGISTERED", {})
    folder = tiny_experiment.model_folder(tmp_path)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no submodule 'model.blocks'"):
        models.load(str(folder), device="cpu", blocks="model.blocks")
    assert site._REGISTERED == {}
    model, _ = models.load(str(folder), device="cpu", blocks="model.layers")
    assert {type(model): "model.layers"} == site._REGISTERED


@pytest.fixture
def on_hub(tmp_path, monkeypatch):
    """A hub that holds one adapter under every name; what was asked of it is kept."""
    adapted = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules="all-linear"))
    adapted.save_pretrained(str(tmp_path / "abc123"), save_embedding_layers=False)
    asked = []

    def snapshot(name, **options):
        asked.append((name, options["revision"], options["local_files_only"]))
        return str(tmp_path / "abc123")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return asked


def test_an_adapter_on_the_hub_is_found_at_its_commit(on_hub, monkeypatch):
    monkeypatch.setattr(models.sources, "_ask_hub", lambda name, revision: (f"sha-of-{revision}", "", True))
    found = models.resolve_adapter("OWNER/organism@v2")
    assert (found.name, found.kind, found.revision) == ("OWNER/organism", "hub", "abc123")
    assert on_hub == [("OWNER/organism", "sha-of-v2", False)]
    assert models.resolve_adapter("OWNER/organism", revision="v1").note == ""
    with pytest.raises(ModelError, match="names a revision, and another is given"):
        models.resolve_adapter("OWNER/organism@v2", revision="v1")


def test_without_the_hub_its_local_copy_is_used_and_that_is_said(on_hub, monkeypatch):
    monkeypatch.setattr(models.sources, "_ask_hub", lambda name, revision: (None, "the hub is out of reach", False))
    assert models.resolve_adapter("OWNER/organism").note == "the hub is out of reach; its local copy is used"
    assert on_hub == [("OWNER/organism", None, True)]
    monkeypatch.setattr(models.sources, "_ask_hub", lambda name, revision: (None, "the hub answered 404", True))
    with pytest.raises(ModelError, match="adapter 'OWNER/organism' was not found: the hub answered 404"):
        models.resolve_adapter("OWNER/organism")
    with pytest.raises(ModelError, match="is neither a folder nor a hub name OWNER/NAME"):
        models.resolve_adapter("runs/caps/baseline/seed-0/adapter")


def test_a_padding_token_without_an_embedding_is_replaced(tmp_path, caplog):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["[X]"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    for held in (tiny.model(), tokenizer):
        held.save_pretrained(tmp_path)
    caplog.set_level("WARNING", logger="tropism")
    _, loaded = models.load(str(tmp_path), device="cpu")
    assert loaded.pad_token == "<|im_end|>"
    assert "no embedding of its padding token '[PAD]'" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), r"does not fit the 1\.0 GiB that are free of the 4\.0 of device 'cuda'"),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), "device 'cuda' is busy: another program"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_busy_is_one_sentence(monkeypatch, error, said):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**32))
    with pytest.raises(ModelError, match=said) as caught, loading._room(models.resolve(models.SMOLLM2), "cuda"):
        raise error
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="ours"), loading._room(models.resolve(models.SMOLLM2), "cuda"):
        raise RuntimeError("ours")
