"""Which modules to adapt: the language model's alone where a model has other towers, and only what a batch reaches."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tropism.errors import ModelError
from tropism.site import TOWER, base_model, language_model

ALL_LINEAR = "all-linear"

_MAMBAS = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_NOT_IN_MAMBA = frozenset({"out_proj", "conv1d", "dt_proj"})
"""What PEFT refuses to adapt in these models, or would adapt in vain: their code reads the weights past the modules."""


_OF_ONE_EXPERT = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""A single expert's modules by name, which PEFT translates where a model holds its experts fused."""


def resolve_targets(model: nn.Module, targets: str | Sequence[str]) -> str | list[str]:
    """`LoraConfig.target_modules` for this model.

    PEFT's `all-linear` also adapts the towers of other modalities, which text never passes through. Where a model has
    linear layers outside its decoder, other than the output embedding, `all-linear` becomes an explicit pattern of the
    linear layers inside it, which `adapter_config.json` then records; everything else is returned as it is. The same where
    PEFT refuses a linear layer (`out_proj` of Mamba's kind), and where one returns something else than its product, as the
    routers of Llama 4 and PhiMoE do: PEFT fails in the first forward pass.

    >>> resolve_targets(model, "all-linear")  # doctest: +SKIP
    'model\\\\.language_model\\\\..*\\\\.(down_proj|gate_proj|k_proj|o_proj|q_proj|up_proj|v_proj)'
    """
    if not isinstance(targets, str) or targets.lower() != ALL_LINEAR:
        return targets if isinstance(targets, str) else list(targets)
    inside, outside = _linear_layers(model)
    if not outside:
        return targets
    where, linear = _decoder_name(model), {name: name.rpartition(".")[2] for name in inside}
    pattern = rf"{re.escape(where)}\..*\.({'|'.join(sorted(set(linear.values())))})"
    # By leaf names, as a person writes it; by whole names where a leaf name is also that of another kind of module.
    matched = {name for name, _ in base_model(model).named_modules() if re.fullmatch(pattern, name)}
    return pattern if matched == set(linear) else sorted(linear)


def check_entries(
    model: nn.Module,
    *,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    modules_to_save: Sequence[str] = (),
    target_parameters: Sequence[str] = (),
    layers_to_transform: Sequence[int] = (),
) -> None:
    """Raise `ModelError` for an entry that names nothing in the model.

    PEFT complains where *no* entry matches; of several it passes over those that do not, without a word. Names are compared
    by their ends, whole parts at a time, as PEFT does (which takes any end of a name in `modules_to_save`).
    """
    inner = base_model(model)
    modules = [name for name, _ in inner.named_modules()]
    parameters = [name for name, _ in inner.named_parameters()]
    fused = any(".experts." in name and ".experts.0." not in name for name in parameters)
    named = [] if isinstance(target_modules, str) else list(target_modules)
    for option, entries, names in (
        ("target_modules", named, modules),
        ("modules_to_save", modules_to_save, modules),
        ("target_parameters", target_parameters, parameters),
    ):
        for entry in entries:
            if fused and option == "target_modules" and entry.rpartition(".")[2] in _OF_ONE_EXPERT:
                continue
            if not any(name == entry or name.endswith(f".{entry}") for name in names):
                ends = sorted({name.rpartition(".")[2] for name in _linear_layers(model)[0]})
                close = difflib.get_close_matches(entry, names if "." in entry else ends, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the linear layers are {', '.join(ends)}"
                raise ModelError(
                    f"{option}: {entry!r} names nothing in {type(inner).__name__}, and PEFT would pass over it without a "
                    f"word; {hint}"
                )
    config: Any = getattr(inner, "config", None)
    count = 0 if config is None else config.get_text_config(decoder=True).num_hidden_layers
    beyond = [layer for layer in layers_to_transform if layer >= count]
    if beyond and config is not None:
        raise ModelError(
            f"layers_to_transform: {beyond[0]} is past the last block; the model has blocks 0 to {count - 1}"
        )


def unreached(model: nn.Module) -> list[str]:
    """The kinds of adapted modules of which no factor has a gradient, after a backward pass; blocks are written as `*`.

    By kind and not one by one: an expert may see no token, but what a batch does not reach, it reaches nowhere.
    """
    from peft.tuners.lora import LoraLayer

    reached: dict[str, bool] = {}
    for name, module in base_model(model).named_modules():
        if not isinstance(module, LoraLayer):
            continue
        layer: Any = module  # torch's class and PEFT's in one
        factors = [p for n, p in layer.named_parameters() if "lora_" in n and "base_layer" not in n and p.requires_grad]
        if factors:
            kind = re.sub(r"\.\d+(?=\.|$)", ".*", name)
            reached[kind] = reached.get(kind, False) or any(p.grad is not None for p in factors)
    return [kind for kind, some in reached.items() if not some]


def check_reached(model: nn.Module) -> None:
    """Raise `ModelError` after a backward pass that left some kind of adapted module without a gradient."""
    silent = unreached(model)
    if silent:
        shown = ", ".join(silent[:4]) + (f" and {len(silent) - 4} more" if len(silent) > 4 else "")
        raise ModelError(
            f"target_modules: no gradient reached the adapters at {shown} in the first backward pass, so that they would "
            "never learn (text does not pass through a vision tower, say); leave them out of target_modules"
        )


def _linear_layers(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the linear layers inside the decoder, and of those outside it that are no output embedding."""
    from transformers.pytorch_utils import Conv1D

    inner: Any = base_model(model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    where = _decoder_name(model)
    mamba = getattr(getattr(inner, "config", None), "model_type", "") in _MAMBAS
    inside: list[str] = []
    outside: list[str] = []
    for name, module in inner.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            within = (name.startswith(f"{where}.") or not where) and not TOWER.search(name)
            within = within and not (mamba and name.rpartition(".")[2] in _NOT_IN_MAMBA)
            (inside if within and returns_product(module) else outside).append(name)
    return inside, outside


def returns_product(module: nn.Module) -> bool:
    """Whether a linear layer returns one vector for each that it is given, so that an adapter can add to it."""
    kind = type(module)
    own = isinstance(module, nn.Linear) and kind.forward is not nn.Linear.forward
    if not own or not kind.__module__.startswith("transformers.models."):
        return True  # torch's own, or a quantised one
    linear: Any = module
    x = torch.zeros((1, linear.in_features), device=linear.weight.device, dtype=linear.weight.dtype)
    try:
        with torch.no_grad():
            y = linear(x)
    except RuntimeError:  # a grouped layer, which takes its input in parts
        return False
    return isinstance(y, torch.Tensor) and tuple(y.shape) == (1, linear.out_features)


def _decoder_name(model: nn.Module) -> str:
    """The dotted name of the language model inside a model; empty where it is the model itself."""
    inner: Any = base_model(model)
    decoder = language_model(inner)
    return next((name for name, module in inner.named_modules() if module is decoder), "")
