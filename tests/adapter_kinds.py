"""One adapter of every kind, on a tiny model, far from zero: what `docs/works-with.md` has a row for."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import peft
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

import architectures
import tiny
from tropism.adapters.merge import merge_adapters

TARGETS = ["q_proj", "down_proj"]


@dataclass(frozen=True)
class Example:
    """An adapter of a kind: its configuration, and the model it goes on."""

    kind: str
    config: Callable[[], peft.PeftConfig]
    model: Callable[[], nn.Module] = tiny.model


def _lora(**options) -> Callable[[], LoraConfig]:
    return lambda: LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS} | options)


def _of(name: str, **options) -> Callable[[], peft.PeftConfig]:
    return lambda: getattr(peft, name)(**{"target_modules": TARGETS} | options)


def _qwen2() -> nn.Module:
    """Its q, k and v have biases."""
    return architectures.build("qwen2", dtype=torch.float32)


def _experts() -> nn.Module:
    return architectures.build("qwen3_moe", dtype=torch.float32)


EXAMPLES: dict[str, Example] = {
    "lora": Example("lora", _lora()),
    "rslora": Example("lora", _lora(use_rslora=True)),
    "patterns": Example("lora", _lora(rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3})),
    "gaussian": Example("lora", _lora(init_lora_weights="gaussian")),
    "random": Example("lora", _lora(init_lora_weights=False)),
    "orthogonal": Example("lora", _lora(init_lora_weights="orthogonal")),
    "eva": Example("lora", _lora(init_lora_weights="eva")),
    "conv1d_linear": Example(
        "lora",
        _lora(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
        lambda: architectures.build("gpt2", dtype=torch.float32),
    ),
    "mica": Example("same_forward", _lora(init_lora_weights="mica")),
    "velora": Example("same_forward", lambda: _lora(velora_config=lora.VeloraConfig(num_groups=2))()),
    "embedding": Example("embedding", _lora(target_modules=[*TARGETS, "embed_tokens"])),
    "scaled_embedding": Example(
        "embedding", _lora(target_modules=["embed_tokens"]), lambda: architectures.build("gemma3", dtype=torch.float32)
    ),
    "experts": Example("experts", _lora(target_modules="all-linear"), _experts),
    "router": Example("experts", _lora(target_modules=["q_proj"], target_parameters=["mlp.gate.weight"]), _experts),
    "lora_bias": Example("lora_bias", _lora(target_modules=["q_proj", "v_proj"], lora_bias=True), _qwen2),
    "pissa": Example("pissa", _lora(init_lora_weights="pissa")),
    "olora": Example("pissa", _lora(init_lora_weights="olora")),
    "pissa_niter": Example("corda", _lora(init_lora_weights="pissa_niter_4")),
    "dora": Example("dora", _lora(use_dora=True)),
    "conv": Example("conv", _lora(target_modules=["linear", "conv1d", "down_proj"]), lambda: _with_convolution()),
    "modules_to_save": Example("modules_to_save", _lora(modules_to_save=["lm_head", "norm"])),
    "tokens": Example("tokens", _lora(trainable_token_indices=[3, 4, 70])),
    "bias": Example("bias", _lora(target_modules=["q_proj", "v_proj"], bias="all"), _qwen2),
    "lora_only_bias": Example("bias", _lora(target_modules=["q_proj", "v_proj"], bias="lora_only"), _qwen2),
    "alora": Example("variant", _lora(alora_invocation_tokens=[5])),
    "kasa": Example("variant", lambda: _lora(kasa_config=lora.KasaConfig())()),
    "bdlora": Example(
        "variant",
        lambda: _lora(
            use_bdlora=lora.config.BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2, match_strict=False)
        )(),
    ),
    "adalora": Example("adalora", _of("AdaLoraConfig", total_step=10)),
    "prompt_tuning": Example("unmerged", lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "prefix_tuning": Example("unmerged", lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "p_tuning": Example("unmerged", lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
}
for _name, _options in {
    "VeraConfig": {},
    "IA3Config": {},
    "LoHaConfig": {},
    "LoKrConfig": {},
    "OFTConfig": {"oft_block_size": 4},
    "BOFTConfig": {"boft_block_size": 4},
    "HRAConfig": {},
    "FourierFTConfig": {"n_frequency": 10},
    "LNTuningConfig": {"target_modules": ["input_layernorm"]},
    "MissConfig": {"r": 8},
    "RandLoraConfig": {},
    "C3AConfig": {"block_size": 8},
    "VBLoRAConfig": {"vector_length": 4, "num_vectors": 32, "topk": 2},
    "ShiraConfig": {"r": 4},
    "DeloraConfig": {},
}.items():
    EXAMPLES[_name.removesuffix("Config").lower()] = Example("other", _of(_name, **_options))
EXAMPLES["trainable_tokens"] = Example("other", lambda: peft.TrainableTokensConfig(token_indices=[3, 4, 70]))

OLD = Version(peft.__version__) < Version("0.21")
# PEFT 0.18, the lowest that is supported: does not know the first four; all-linear leaves fused experts out, and no second
# adapter goes on a parameter; lora_only saves no bias, which loading refuses; what VeRA saves is not all that it loads.
NOT_IN_OLD = ("mica", "velora", "kasa", "bdlora", "experts", "router", "lora_only_bias", "vera") if OLD else ()
for _name in NOT_IN_OLD:
    del EXAMPLES[_name]

NAMES = tuple(EXAMPLES)


def _with_convolution() -> nn.Module:
    """A tiny Llama whose query passes a convolution over the tokens first, as in Mamba."""
    model = tiny.model()

    class Query(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear, self.conv1d = linear, nn.Conv1d(linear.out_features, linear.out_features, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv1d(self.linear(x).mT).mT

    with torch.random.fork_rng():
        torch.manual_seed(3)
        for layer in model.model.layers:
            layer.self_attn.q_proj = Query(layer.self_attn.q_proj)
    return model


def make(name: str, seed: int = 0, *, fresh: bool = False) -> peft.PeftModel:
    """The adapter on its model; every trainable tensor moved away from its start unless `fresh`."""
    if name in NOT_IN_OLD:
        pytest.skip(f"PEFT {peft.__version__} does not make {name}")
    example = EXAMPLES[name]
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        model = get_peft_model(example.model(), example.config())
        if not fresh:
            move(model)
    return model


def move(model: nn.Module, size: float = 0.1) -> None:
    """Move every trainable parameter by noise."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))


def save(model: peft.PeftModel, folder) -> None:
    with quiet():
        model.save_pretrained(str(folder), save_embedding_layers=False)


def quiet() -> warnings.catch_warnings:
    """PEFT's advice on rare options, which the tests are not about."""
    return warnings.catch_warnings(action="ignore")


def batch(model: nn.Module) -> dict[str, torch.Tensor]:
    """Token ids that every model here has."""
    ids = torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(1))
    ids[0, :3] = torch.tensor([3, 4, 5])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    with quiet():
        return model.eval()(**batch(model)).logits


def dense(model: nn.Module, adapter: str = "default") -> dict[str, torch.Tensor]:
    """What PEFT adds to every weight, by its own `get_delta_weight`, as `[d_out, d_in]`; of experts one by one."""
    changes = {}
    inner = model.get_base_model()
    for path, layer in inner.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.scaling:
            continue
        delta = layer.get_delta_weight(adapter).detach()
        base, module = layer.get_base_layer(), path.replace(".base_layer", "")
        if isinstance(layer, ParamWrapper) and delta.dim() == 3:
            for expert, one in enumerate(delta):
                changes[f"{module}.{layer.parameter_name}.{expert}"] = (
                    one.mT if getattr(base, "is_transposed", False) else one
                )
        elif isinstance(layer, ParamWrapper):
            changes[f"{module}.{layer.parameter_name}"] = delta
        else:
            changes[module] = delta.mT if isinstance(base, nn.Embedding) or layer.fan_in_fan_out else delta
    return changes


def change_of_everything(model: nn.Module, start: nn.Module) -> dict[str, torch.Tensor]:
    """What differs between the merged model and an untouched one, parameter by parameter: nothing is left out."""
    with quiet():
        merged = merge_adapters(copy.deepcopy(model)).state_dict()
    return {
        key: merged[key] - tensor for key, tensor in start.state_dict().items() if not torch.equal(merged[key], tensor)
    }
