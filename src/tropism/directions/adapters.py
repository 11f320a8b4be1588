"""Reading LoRA factors from where they lie: a live PEFT model, an adapter's folder, or the difference of two
models.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tropism.errors import DirectionsError, DirectionsMismatch
from tropism.site import base_model

PREFIX = "base_model.model."
"""What PEFT puts before a module's name in a saved adapter."""


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """One adapter at one weight: `ΔW = scale·B·A`, `A [r, d_in]`, `B [d_out, r]`."""

    A: Float[Tensor, "r d_in"]
    B: Float[Tensor, "d_out r"]
    scale: float


@dataclass(frozen=True, eq=False)
class ReadAdapter:
    """All factors of an adapter, by the name of the module in the unwrapped model; where they came from."""

    weights: Mapping[str, AdapterWeights]
    base_model: str | None
    origin: str


def read_adapter(source: nn.Module | str | Path, adapter_name: str | None = None) -> ReadAdapter:
    """The LoRA factors of a PEFT model or of an adapter's folder; raises `DirectionsError`."""
    return _from_model(source, adapter_name) if isinstance(source, nn.Module) else _from_folder(Path(source))


def _from_model(model: nn.Module, adapter_name: str | None) -> ReadAdapter:
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: module for name, module in base_model(model).named_modules() if isinstance(module, LoraLayer)
    }
    if not layers:
        raise DirectionsError(f"parameter_directions: {type(model).__name__} has no LoRA layers; pass a PEFT model")
    names = [adapter_name] if adapter_name else sorted({n for layer in layers.values() for n in layer.active_adapters})
    if len(names) != 1:
        raise DirectionsError(
            f"parameter_directions: the model has the active adapters {', '.join(names) or 'none'}; name one "
            "with adapter_name"
        )
    name = names[0]
    weights: dict[str, AdapterWeights] = {}
    for path, layer in layers.items():
        if name not in layer.lora_A:
            continue
        if layer.use_dora.get(name, False):
            raise DirectionsError(f"parameter_directions: {path} uses DoRA, whose change of the weight is not s·B·A")
        A, B = (
            factor[name].weight.detach().to("cpu", torch.float32).clone() for factor in (layer.lora_A, layer.lora_B)
        )
        weights[path] = AdapterWeights(A, B, float(layer.scaling[name]))
    if not weights:
        raise DirectionsError(f"parameter_directions: no linear layer of the model has an adapter named {name!r}")
    return ReadAdapter(weights, _name(base_model(model)), f"adapter {name!r} of a model in memory")


def _from_folder(folder: Path) -> ReadAdapter:
    from peft.utils.other import get_pattern_key

    config_file, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for needed in (config_file, file):
        if not needed.is_file():
            raise DirectionsError(
                f"{folder} is no adapter that can be read: it has no {needed.name} (PEFT saves both with "
                "save_pretrained; pickled .bin adapters are not opened)"
            )
    try:
        config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
        tensors = load_file(file)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise DirectionsError(f"{folder} is damaged: {error}") from None
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise DirectionsError(f"{folder} must be a LoRA adapter (its ΔW is s·B·A), found {kind}")
    weights: dict[str, AdapterWeights] = {}
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    for key, A in tensors.items():
        module, found, _ = key.removeprefix(PREFIX).partition(".lora_A.weight")
        if not found:
            continue
        B = tensors.get(key.replace(".lora_A.", ".lora_B."))
        if B is None:
            raise DirectionsError(f"{folder} is damaged: {key} has no lora_B beside it")
        r = int(ranks.get(get_pattern_key(list(ranks), module), config["r"]))
        alpha = float(alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"]))
        scale = alpha / (r**0.5 if config.get("use_rslora") else r)
        weights[module] = AdapterWeights(A.float(), B.float(), scale)
    if not weights:
        raise DirectionsError(f"{folder} holds no lora_A and lora_B of a linear layer")
    return ReadAdapter(weights, _public(config.get("base_model_name_or_path")), folder.name)


def weight_difference(
    aligned: nn.Module, base: nn.Module, rank: int, *, split: bool
) -> tuple[list[dict[str, AdapterWeights]], str | None]:
    """Truncated SVD of `W_aligned − W_base` of every linear layer but the output embedding.

    With `split`, source `i` holds every weight's `i`-th singular pair (`B = u_i`, `A = v_iᵀ`, length 1);
    without, one source holds `U·S` and `Vᵀ`. Also returns the base model's name. Layers that are equal in
    both are left out.
    """
    if rank < 1:
        raise DirectionsError(f"parameter_directions(rank=...) must be at least 1, found {rank}")
    from transformers.pytorch_utils import Conv1D

    theirs = dict(base.named_modules())
    aligned_model: Any = aligned
    embedding = aligned_model.get_output_embeddings() if hasattr(aligned, "get_output_embeddings") else None
    sources: list[dict[str, AdapterWeights]] = [{} for _ in range(rank if split else 1)]
    for name, module in aligned.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is embedding:
            continue
        other = theirs.get(name)
        if not isinstance(other, nn.Linear | Conv1D) or other.weight.shape != module.weight.shape:
            raise DirectionsMismatch(f"{name} of the aligned model has no counterpart of its shape in the base model")
        D = module.weight.detach().to("cpu", torch.float32) - other.weight.detach().to("cpu", torch.float32)
        if not D.any():
            continue
        U, S, Vh = _truncated_svd(D.T if isinstance(module, Conv1D) else D, rank)
        if split:
            for i in range(len(S)):
                if S[i] > 1e-6 * S[0]:  # past the difference's own rank a singular pair is rounding noise
                    sources[i][name] = AdapterWeights(Vh[i : i + 1], U[:, i : i + 1], 1.0)
        else:
            sources[0][name] = AdapterWeights(Vh, U * S, 1.0)
    if not sources[0]:
        raise DirectionsError("the aligned and the base model have equal linear weights, so there is no direction")
    return [source for source in sources if source], _name(base)


def _name(model: nn.Module) -> str | None:
    config: Any = getattr(model, "config", None)
    return _public(config.name_or_path) if config is not None else None


def _public(name: str | None) -> str | None:
    """A local folder is known by its last part, so that no machine's paths end up in a file."""
    return (Path(name).name if name.startswith(("/", "~", ".")) else name) if name else None


def _truncated_svd(D: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` largest singular triples; randomised with power iteration (Halko et al., 2011) where D is
    large.
    """
    if min(D.shape) > 1024:
        generator = torch.Generator().manual_seed(0)
        Q = torch.linalg.qr(D @ torch.randn(D.shape[1], rank + 16, generator=generator)).Q
        for _ in range(8):
            Q = torch.linalg.qr(D @ torch.linalg.qr(D.T @ Q).Q).Q
        U, S, Vh = torch.linalg.svd(Q.T @ D, full_matrices=False)
        U = Q @ U
    else:
        U, S, Vh = torch.linalg.svd(D, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]
