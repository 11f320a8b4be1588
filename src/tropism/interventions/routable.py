"""What gradient routing can be attached to: two plain LoRA adapters, live and trainable, and nothing else trainable."""

import re
import warnings
from collections.abc import Collection, Iterator, Mapping

from peft.tuners.lora import LoraLayer
from torch import nn

from tropism.adapters.parts import parts_of_model, require
from tropism.adapters.targets import returns_product
from tropism.blocks import rows_mixed
from tropism.errors import AttachError, SiteError


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Yield the modules that carry LoRA adapters, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def adapter_parameters(layers: Mapping[str, LoraLayer], adapter: str) -> list[nn.Parameter]:
    """Return the adapter's factors at every layer, A before B."""
    return [
        p
        for layer in layers.values()
        if adapter in layer.lora_A
        for p in (*layer.lora_A[adapter].parameters(), *layer.lora_B[adapter].parameters())
    ]


def check_routable(model: nn.Module, layers: Mapping[str, LoraLayer], retain: str, forget: str) -> None:
    """Raise `AttachError` for everything under which routing would be inexact or silent."""
    both = (retain, forget)
    found = sorted({adapter for layer in layers.values() for adapter in (*layer.lora_A, *layer.lora_embedding_A)})
    for adapter in both:
        if adapter not in found:
            raise AttachError(
                f"GradientRouting: the model must have a LoRA adapter {adapter!r}, found "
                f"{', '.join(map(repr, found)) or 'no adapter'}; make both with tropism.two_adapters(model, ...)"
            )
    parts = parts_of_model(model, both)
    experts = [part.module for part in parts if part.kind == "experts"]
    if experts:
        raise AttachError(
            f"GradientRouting: the adapter has LoRA on fused experts or routers at {_shown(experts)}, whose factors lie in "
            f"one tensor and act through no module, so that rows cannot be told apart; {_instead(layers, experts)} on "
            "the base model (model.unload() gives it back)"
        )
    require("route", parts, "GradientRouting", AttachError)
    for name, layer in layers.items():
        _check_layer(name, layer, both)
    odd = [name for name, layer in layers.items() if not returns_product(layer.get_base_layer())]
    if odd:
        raise AttachError(
            f"GradientRouting: {_shown(odd)} returns something else than its product (a router), so that no adapter can "
            f"add to it; {_instead(layers, odd)}"
        )
    _check_rows(model, layers)
    _check_trainable(model, layers, both)
    lacking = [name for name, layer in layers.items() if forget in layer.lora_A and retain not in layer.lora_A]
    if lacking:
        warnings.warn(
            f"GradientRouting: {forget!r} adapts {len(lacking)} modules that {retain!r} lacks "
            f"({', '.join(lacking[:3])}); there nothing trained is left once {forget!r} is removed",
            stacklevel=2,
        )


def _check_rows(model: nn.Module, layers: Mapping[str, LoraLayer]) -> None:
    """Every adapted module sees the rows of a batch in order; in a mixture of experts, tokens are regrouped by expert."""
    try:
        mixed = rows_mixed(model, layers)
    except SiteError:
        return  # not runnable on tokens alone: each linear's first pass checks the shapes that it sees
    if mixed:
        first = next(iter(mixed))
        raise AttachError(
            f"GradientRouting cannot tell which rows of a batch {_shown(list(mixed))} see ({mixed[first]}), as where a "
            f"mixture of experts sends tokens about; {_instead(layers, mixed)}"
        )


def _shown(names: Collection[str]) -> str:
    """The kinds of modules, with blocks and experts as `*`."""
    kinds = list(
        dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name.removeprefix("base_model.model.")) for name in names)
    )
    return ", ".join(kinds[:3]) + (f" and {len(kinds) - 3} more" if len(kinds) > 3 else "")


def _instead(layers: Mapping[str, LoraLayer], refused: Collection[str]) -> str:
    """The target modules that can be routed, by the last part of their names."""
    out = {name.removeprefix("base_model.model.") for name in refused}
    kept: set[str] = set()
    gone: set[str] = set()
    for name in layers:
        plain = name.removeprefix("base_model.model.")
        (gone if plain in out or "base_layer" in plain else kept).add(plain.rpartition(".")[2])
    routable = sorted(kept - gone)
    return f"adapt the others alone: target_modules={routable}" if routable else "adapt other modules"


def _check_layer(name: str, layer: LoraLayer, both: tuple[str, str]) -> None:
    """One layer: both adapters act."""
    here = [adapter for adapter in both if adapter in layer.lora_A or adapter in layer.lora_embedding_A]
    if not here:
        return
    if layer.merged or layer.disable_adapters:
        raise AttachError(f"GradientRouting: the adapters at {name} are merged or disabled; undo that first")
    idle = [adapter for adapter in here if adapter not in layer.active_adapters]
    if idle:
        raise AttachError(
            f"GradientRouting: adapter {idle[0]!r} must be active, found active {layer.active_adapters} at {name}; "
            f"call model.base_model.set_adapter([{both[0]!r}, {both[1]!r}])"
        )


def _check_trainable(model: nn.Module, layers: Mapping[str, LoraLayer], both: tuple[str, str]) -> None:
    """The adapters are trainable and nothing else is."""
    ours: set[int] = set()
    for adapter in both:
        parameters = adapter_parameters(layers, adapter)
        if not all(parameter.requires_grad for parameter in parameters):
            raise AttachError(
                f"GradientRouting: adapter {adapter!r} must be trainable, found requires_grad=False in it"
            )
        ours.update(map(id, parameters))
    others = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in ours
    ]
    if others:
        raise AttachError(
            f"GradientRouting: only the adapters may be trainable, found {len(others)} other trainable parameters "
            f"({', '.join(others[:3])}, ...), which would learn from every row; freeze them"
        )
