"""All LoRA factors of an adapter: live in a model, or copied from a model or a folder as what was learned."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from tropism.adapters.factors import LoraFactors, Place
from tropism.adapters.folder import PREFIX, WEIGHTS, AdapterFolder, open_adapter
from tropism.adapters.kinds import Operation
from tropism.adapters.load import name_of
from tropism.adapters.parts import parts_of_model, require, strip_base_layer
from tropism.errors import DirectionsError, DirectionsMismatch
from tropism.site import base_model


@dataclass(frozen=True, eq=False)
class ReadAdapter:
    """What an adapter has learned, by the name of the weight in the unwrapped model; where it came from."""

    weights: Mapping[str, LoraFactors]
    base_model: str | None
    origin: str


def read_adapter(
    source: nn.Module | str | Path,
    adapter_name: str | None = None,
    *,
    start: nn.Module | str | Path | None = None,
    operation: Operation = "read",
    who: str = "parameter_directions",
) -> ReadAdapter:
    """Read what an adapter has learned, from a PEFT model or from a folder.

    Args:
        source: a PEFT model, or an adapter's folder.
        adapter_name: which adapter of a model; by default its one active adapter.
        start: the adapter before training, of which the change is then read: `s(B·A − B₀·A₀)`. Initialisations that
            change the base weight (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) need it.
        operation: `read`, or `frozen adapter`: what the factors are for.
        who: begins each error's sentence.

    Raises:
        DirectionsError: no LoRA factors, or an adapter that has more than they say. DirectionsMismatch: a start of other
            weights.
    """
    found = _read(source, adapter_name, operation, who, start is not None)
    if start is None:
        return found
    before = _read(start, adapter_name if isinstance(start, nn.Module) else None, operation, f"{who}(start=...)", True)
    return ReadAdapter(_changed(found, before, who), found.base_model, found.origin)


def live_factors(model: nn.Module, names: Collection[str] | None = None) -> Iterator[LoraFactors]:
    """The LoRA factors in a model, of the adapters named, or of the active ones; what is no LoRA factor is passed over."""
    from peft.tuners.lora import LoraLayer

    for path, module in base_model(model).named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module  # PEFT's object
            for name in layer.active_adapters if names is None else names:
                yield from _of_layer(path, layer, name)


def adapters_in(model: nn.Module) -> list[str]:
    """Names of the LoRA adapters that a model holds, sorted."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in base_model(model).modules() if isinstance(module, LoraLayer)]
    return sorted({name for layer in layers for name in layer.scaling})


def total_norm(factors: Collection[LoraFactors]) -> float:
    """`sqrt(Σ_W ‖s·B·A‖²)`."""
    return math.sqrt(sum(held.norm() ** 2 for held in factors))


def _of_layer(path: str, layer: Any, name: str) -> Iterator[LoraFactors]:
    from peft.tuners.lora.layer import ParamWrapper

    if name in layer.lora_embedding_A:
        place = Place(path, path, name, base=layer.get_base_layer().weight)
        yield LoraFactors(
            layer.lora_embedding_A[name], layer.lora_embedding_B[name], float(layer.scaling[name]), place=place
        )
    elif name in layer.lora_A and isinstance(layer.lora_A[name], nn.Module) and isinstance(layer, ParamWrapper):
        yield from _of_parameter(path, layer, name)
    elif name in layer.lora_A and isinstance(layer.lora_A[name], nn.Linear):
        A, B = layer.lora_A[name], layer.lora_B[name]
        place = Place(path, path, name, base=getattr(layer.get_base_layer(), "weight", None))
        yield LoraFactors(A.weight, B.weight, float(layer.scaling[name]), B.bias, place)


def _of_parameter(path: str, layer: Any, name: str) -> Iterator[LoraFactors]:
    """The factors of a parameter that is adapted by itself: of each of its experts, or of one matrix."""
    module, parameter = strip_base_layer(path), layer.parameter_name
    plain = isinstance(layer.get_base_layer(), nn.Linear) and parameter == "weight"
    for expert in range(layer.num_experts):
        weight = f"{module}.{parameter}.{expert}" if layer.get_param().dim() == 3 else f"{module}.{parameter}"
        place = Place(module if plain else weight, module, name, expert, layer.num_experts, layer.get_param())
        yield LoraFactors(layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]), place=place)


def _read(
    source: nn.Module | str | Path, adapter_name: str | None, operation: Operation, who: str, started: bool
) -> ReadAdapter:
    if isinstance(source, nn.Module):
        return _from_model(source, adapter_name, operation, who, started)
    return _from_folder(open_adapter(source, DirectionsError), operation, who, started)


def _from_model(
    model: nn.Module, adapter_name: str | None, operation: Operation, who: str, started: bool
) -> ReadAdapter:
    parts = parts_of_model(model, None if adapter_name is None else [adapter_name])
    require(operation, parts, who, DirectionsError, started=started)
    names = adapters_in(model)
    if not names:
        raise DirectionsError(f"{who}: {type(model).__name__} has no LoRA layers; pass a PEFT model")
    if adapter_name is None:
        active = sorted({factors.place.adapter for factors in live_factors(model)})
        if len(active) != 1:
            raise DirectionsError(
                f"{who}: the model has the active adapters {', '.join(active) or 'none'}; name one with adapter_name"
            )
        adapter_name = active[0]
    weights = {factors.place.weight: factors.copied() for factors in live_factors(model, [adapter_name])}
    if not weights:
        raise DirectionsError(f"{who}: the model has no adapter {adapter_name!r}, it has {', '.join(names)}")
    return ReadAdapter(weights, public(name_of(model)), f"adapter {adapter_name!r} of a model in memory")


def _from_folder(folder: AdapterFolder, operation: Operation, who: str, started: bool) -> ReadAdapter:
    about = f"{who}: {folder.path}"
    parts = folder.parts()
    require(operation, parts, about, DirectionsError, started=started)
    fused = [part for part in parts if part.kind == "experts"]
    if fused:
        raise DirectionsError(
            f"{about}: {fused[0]} cannot be read from a folder, where no expert is told from another; load it on its model "
            "(tropism.models.load(MODEL, adapter=FOLDER)) and pass the model"
        )
    # Copies: what safetensors gives is mapped from the file, which Windows then lets nobody replace.
    tensors = {key: tensor.clone() for key, tensor in load_file(folder.path / WEIGHTS).items()}
    weights: dict[str, LoraFactors] = {}
    for key, A in tensors.items():
        if ".lora_A." not in key and ".lora_embedding_A" not in key:
            continue
        module = key.removeprefix(PREFIX).partition(".lora_")[0]
        beside = key.replace(".lora_A.", ".lora_B.").replace(".lora_embedding_A", ".lora_embedding_B")
        B = tensors.get(beside)
        if B is None:
            raise DirectionsError(f"{folder.path} is damaged: {key} has no {beside.rpartition('.lora_')[2]} beside it")
        if A.shape[0] != folder.rank(module) or B.shape[1] != A.shape[0]:
            raise DirectionsError(
                f"{folder.path} is damaged: its configuration gives {module} rank {folder.rank(module)}, its tensors are "
                f"{list(A.shape)} and {list(B.shape)}"
            )
        bias = tensors.get(key.replace(".lora_A.weight", ".lora_B.bias")) if ".lora_A." in key else None
        bias = None if bias is None else bias.float()
        weights[module] = LoraFactors(A.float(), B.float(), folder.scale(module), bias)
    if not weights:
        raise DirectionsError(f"{folder.path} holds no lora_A and lora_B")
    return ReadAdapter(weights, public(folder.base_model), folder.path.name)


def _changed(after: ReadAdapter, before: ReadAdapter, who: str) -> dict[str, LoraFactors]:
    odd = sorted(after.weights.keys() ^ before.weights.keys())
    odd = odd or [name for name, held in after.weights.items() if held.shape != before.weights[name].shape]
    if odd:
        raise DirectionsMismatch(
            f"{who}: start must be the same adapter before training, found other weights or shapes ({len(odd)}, first "
            f"{odd[0]})"
        )
    return {name: held.minus(before.weights[name]) for name, held in after.weights.items()}


def public(name: str | None) -> str | None:
    """A local folder is known by its last part, so that no machine's paths end up in a file."""
    return (Path(name).name if name.startswith(("/", "~", ".")) else name) if name else None
