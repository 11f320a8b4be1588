"""Two adapters: made, saved, loaded strictly, exported alone and merged."""

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import routing_oracle as oracle
import tiny
from tropism.errors import ModelError
from tropism.interventions.routing import GradientRouting
from tropism.interventions.routing_modes import ablation_mode
from tropism.interventions.two_adapters import (
    WEIGHTS,
    export_merged,
    export_retain,
    load_adapters,
    save_adapters,
    two_adapters,
)


def base(dtype=torch.float32):
    return tiny.model(layers=2, dtype=dtype)


def trained(dtype=torch.float32):
    """As `oracle.model`, on the base that `base()` builds again."""
    return oracle.model(dtype=dtype).eval()


def logits(model):
    batch = tiny.batch()
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def test_both_adapters_are_live_and_trainable_with_ranks_and_modules_of_their_own():
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    model = two_adapters(base(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), config)
    for adapter, count in (("retain", 8), ("forget", 4)):
        parameters = oracle.parameters(model, adapter)
        assert len(parameters) == count
        assert all(p.requires_grad for p in parameters.values())
    with GradientRouting().attach(model):
        model(**tiny.batch(), route=torch.tensor([0, 1, 2])).loss.backward()


def test_the_same_configuration_may_be_given_twice():
    config = peft.LoraConfig(r=2, target_modules="all-linear")
    model = two_adapters(base(), config, config)
    assert config.target_modules == "all-linear"
    assert len(oracle.parameters(model, "retain")) == len(oracle.parameters(model, "forget")) == 28


def test_two_adapters_wants_a_base_model_and_two_names():
    config = peft.LoraConfig(target_modules=["q_proj"])
    with pytest.raises(ModelError, match="found a PeftModel"):
        two_adapters(peft.get_peft_model(base(), config), config, config)
    with pytest.raises(ModelError, match="two names, found 'a' twice"):
        two_adapters(base(), config, config, retain_name="a", forget_name="a")


def test_saved_and_loaded_is_the_same_model_and_routes_again(tmp_path):
    model = trained()
    save_adapters(model, tmp_path)
    again = load_adapters(base(), tmp_path)
    assert torch.equal(logits(again), logits(model))
    with GradientRouting().attach(again.train()):
        again(**tiny.batch(), route=torch.tensor([1, 1, 1])).loss.backward()
    assert all((p.grad == 0).all() for p in oracle.parameters(again, "retain").values())
    frozen = load_adapters(base(), tmp_path, trainable=False)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_each_saved_adapter_is_an_ordinary_peft_folder(tmp_path):
    model = trained()
    save_adapters(model, tmp_path)
    alone = peft.PeftModel.from_pretrained(base(), tmp_path / "retain")
    with ablation_mode(model, "forget_ablated"):
        torch.testing.assert_close(logits(alone), logits(model), rtol=0, atol=1e-6)


def test_a_missing_adapter_is_an_error(tmp_path):
    save_adapters(trained(), tmp_path)
    (tmp_path / "forget" / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="found no forget/adapter_model.safetensors"):
        load_adapters(base(), tmp_path)


@pytest.mark.parametrize("damage", ["missing", "shape", "unexpected"])
def test_a_missing_tensor_is_an_error_since_it_looks_like_perfect_removal(tmp_path, damage):
    save_adapters(trained(), tmp_path)
    file = tmp_path / "forget" / WEIGHTS
    tensors = load_file(file)
    key = sorted(tensors)[0]
    if damage == "missing":
        del tensors[key]
    elif damage == "shape":
        tensors[key] = tensors[key][:1].contiguous()
    else:
        tensors["base_model.model.extra.lora_A.weight"] = torch.zeros(1)
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"every tensor of adapter 'forget' \(8\).*looks like perfect removal"):
        load_adapters(base(), tmp_path)
    if damage == "missing":
        with pytest.warns(UserWarning, match="found 1 missing or of another shape"):
            load_adapters(base(), tmp_path, strict=False)


def test_the_exported_adapter_is_the_forget_ablated_model(tmp_path):
    model = trained()
    folder = export_retain(model, tmp_path / "deploy")
    assert {file.name for file in folder.iterdir()} == {WEIGHTS, "adapter_config.json"}
    deployed = peft.PeftModel.from_pretrained(base(), folder)
    with ablation_mode(model, "forget_ablated"):
        torch.testing.assert_close(logits(deployed), logits(model), rtol=0, atol=1e-6)
    assert not any("forget" in key for key in load_file(folder / WEIGHTS))


def test_merged_equals_adapters_and_the_model_is_left_as_it_was():
    model = trained()
    before = logits(model)
    merged = export_merged(model)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    with ablation_mode(model, "forget_ablated"):
        torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), before)


def test_an_absent_retain_adapter_cannot_be_exported(tmp_path):
    with pytest.raises(ModelError, match="must have an adapter 'kept', found retain, forget"):
        export_retain(trained(), tmp_path, retain="kept")
