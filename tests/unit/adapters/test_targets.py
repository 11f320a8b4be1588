"""`all-linear` adapts the language model alone, and what a text batch does not reach is refused after a backward pass."""

import re

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import adapter_kinds
import architectures
import tiny
import tiny_causal
import tropism as tp
from tropism.adapters.targets import check_entries, check_reached, resolve_targets, unreached
from tropism.errors import GuardNotInForce, ModelError
from tropism.experiments.fine_tune import with_adapters
from tropism.training.options import TrainOptions

TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
MULTIMODAL = {
    "gemma3": architectures.CONFIGS["gemma3_multimodal"],
    "llava": lambda: transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config={"model_type": "clip_vision_model", **VISION}
    ),
    "idefics3": lambda: transformers.Idefics3Config(
        text_config={"model_type": "llama", **TEXT}, vision_config=VISION, image_token_id=60
    ),
    "smolvlm": lambda: transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config=VISION, image_token_id=60
    ),
    "paligemma": lambda: transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", **TEXT, "head_dim": 8},
        vision_config={"model_type": "siglip_vision_model", **VISION, "projection_dim": 16},
        projection_dim=16,
        image_token_index=60,
    ),
    "qwen2_vl": lambda: transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2},
    ),
}


def build(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForImageTextToText.from_config(MULTIMODAL[name]())


def adapted(model):
    return {name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")}


@pytest.mark.parametrize("name", MULTIMODAL)
@pytest.mark.parametrize("two", [False, True])
def test_the_language_model_alone_is_adapted_and_the_configuration_says_so(name, two):
    base = build(name)
    where = next(n for n, module in base.named_modules() if module is base.get_decoder())
    expected = {n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith(f"{where}.")}
    assert expected
    assert len(expected) < sum(isinstance(m, torch.nn.Linear) for m in base.modules()) - 1  # there is another tower
    model = with_adapters(base, TrainOptions(max_steps=1), two=two)
    assert adapted(model) == expected
    for config in model.peft_config.values():
        assert re.fullmatch(config.target_modules, sorted(expected)[0])


@pytest.mark.parametrize("name", [n for n in architectures.NAMES if "multimodal" not in n])
def test_a_text_model_is_left_to_peft(name):
    assert resolve_targets(architectures.build(name), "all-linear") == "all-linear"


def test_what_a_person_names_is_left_as_it_is():
    assert resolve_targets(build("gemma3"), ["q_proj"]) == ["q_proj"]
    assert resolve_targets(build("gemma3"), ".*vision.*fc1") == ".*vision.*fc1"


def test_a_leaf_name_of_two_kinds_is_written_out():
    base = build("gemma3")
    base.model.language_model.layers[0].mlp.gate_proj = torch.nn.Sequential(
        base.model.language_model.layers[0].mlp.gate_proj
    )
    targets = resolve_targets(base, "all-linear")
    assert isinstance(targets, list)
    assert "model.language_model.layers.0.mlp.gate_proj.0" in targets
    assert "model.language_model.layers.0.mlp.gate_proj" not in targets


def text_only(model):
    batch = {k: v for k, v in architectures.batch("gemma3_multimodal").items() if k != "labels"}
    return model.train()(**batch).logits.square().mean()


def test_what_a_text_batch_does_not_reach_is_found_after_the_first_backward_pass():
    model = get_peft_model(build("gemma3"), LoraConfig(r=2, target_modules="all-linear"))
    text_only(model).backward()
    assert {kind.split(".")[1] for kind in unreached(model)} == {"vision_tower"}
    with pytest.raises(ModelError, match=r"no gradient reached the adapters at model\.vision_tower\..*layers\.\*"):
        check_reached(model)
    right = get_peft_model(
        build("gemma3"), LoraConfig(r=2, target_modules=resolve_targets(build("gemma3"), "all-linear"))
    )
    text_only(right).backward()
    check_reached(right)


def test_routing_refuses_it_in_the_first_pass():
    config = LoraConfig(r=2, target_modules=r".*\.q_proj")  # not `all-linear`, which leaves the tower out
    model = tp.two_adapters(build("gemma3"), retain=config, forget=config)
    batch = {k: v for k, v in architectures.batch("gemma3_multimodal").items() if k != "labels"}
    with pytest.raises(GuardNotInForce, match="vision_tower"), tp.GradientRouting().attach(model.train()):
        model(**batch, route=torch.tensor([1, 0]))


def test_an_expert_that_no_token_chose_is_no_complaint():
    model = adapter_kinds.make("experts").train()
    model(**adapter_kinds.batch(model)).logits.square().mean().backward()
    assert unreached(model) == []
    plain = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj"]))
    plain(**tiny.batch()).loss.backward()
    plain.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight.grad = None
    plain.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight.grad = None
    assert unreached(plain) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_proj", "v_prog"]}, "target_modules: 'v_prog' names nothing in .*did you mean 'v_proj'"),
        ({"target_modules": ["q_proj", "zzz"]}, "the linear layers are down_proj, gate_proj, k_proj"),
        ({"target_modules": ["q_proj", "_proj"]}, "'_proj' names nothing"),
        ({"modules_to_save": ["lm_hed"]}, "modules_to_save: 'lm_hed' names nothing"),
        (
            {"target_parameters": ["mlp.experts.gate_up_proj"]},
            "target_parameters: 'mlp.experts.gate_up_proj' names nothing",
        ),
        ({"layers_to_transform": [1, 4]}, "layers_to_transform: 4 is past the last block; the model has blocks 0 to 3"),
    ],
)
def test_an_entry_that_names_nothing_is_refused_where_peft_passes_over_it(options, message):
    with pytest.raises(ModelError, match=message):
        with_adapters(tiny.model(), TrainOptions(lora=options), two=False)
    if "modules_to_save" in options:
        return  # refused by two_adapters in any case
    with pytest.raises(ModelError, match=message):
        tp.two_adapters(tiny.model(), LoraConfig(**{"target_modules": ["q_proj"], **options}), LoraConfig(r=2))


def test_entries_that_name_something_are_adapted():
    named = {"target_modules": ["q_proj", "layers.1.mlp.down_proj", "model.layers.0.self_attn.k_proj"]}
    adapted = with_adapters(tiny.model(), TrainOptions(lora={**named, "modules_to_save": ["norm"]}), two=False)
    found = {name for name, _ in adapted.named_modules() if name.endswith("lora_A")}
    assert len(found) == 4 + 1 + 1


def test_names_of_single_experts_are_left_to_peft_which_translates_them():
    check_entries(tiny_causal.build("mixtral"), target_modules=["q_proj", "w1", "w3"])
    with pytest.raises(ModelError, match="'gate_up_proj' names nothing"):
        check_entries(tiny_causal.build("mixtral"), target_modules=["q_proj", "gate_up_proj"])
