"""Directions in weight space that another project saved: `{name: tensor}` of LoRA factors, as the refusal study does.

Its file holds, for each factor A and B of an adapter, the tensor divided by its own length, under the name in the model
and often again without PEFT's prefix. How large the weights' shares were is lost, so such directions belong into the
space of the factors (`UpdateConstraint(space="parameter")`), for adapters of the same initialisation and rank.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tropism.directions.foreign_files import read_pt
from tropism.directions.parameter import ParameterDirections
from tropism.errors import DirectionsError

_NAME = re.compile(r"(?:base_model\.(?:model\.)?)?(.+)\.lora_([AB])(?:\.(\w+))?\.weight")


def read_parameter_directions(path: str | Path) -> ParameterDirections:
    """Read directions in weight space: our own file, or a `.pt` of LoRA factors by name.

    Raises `DirectionsError` where the file is neither.
    """
    file = Path(path)
    if file.suffix.lower() not in (".pt", ".pth", ".bin"):
        return ParameterDirections.load(file)
    if not file.is_file():
        raise DirectionsError(f"no directions file at {file}")
    value = read_pt(file)
    if not is_parameters(value):
        raise DirectionsError(
            f"{file.name} holds no LoRA factors by name (…lora_A.weight), so no directions in weight space"
        )
    return of_named_factors(value, file.name)


def is_parameters(value: Any) -> bool:
    """Whether a loaded file is a dictionary of LoRA factors by name."""
    return isinstance(value, Mapping) and any(_NAME.fullmatch(str(name)) for name in value)


def of_named_factors(value: Mapping[Any, Any], origin: str) -> ParameterDirections:
    """Make one direction of `{name: tensor}`; a weight of which only A is there was not changed, and is left out.

    Raises `DirectionsError` for a name that is no LoRA factor's, two adapters, or two different tensors of one name.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    adapters: set[str] = set()
    for name, tensor in value.items():
        match = _NAME.fullmatch(str(name))
        if match is None or not isinstance(tensor, Tensor) or tensor.dim() != 2:
            raise DirectionsError(f"{origin}: {name!r} is no LoRA factor (…lora_A.weight or …lora_B.weight, a matrix)")
        weight, side, adapter = match.groups()
        adapters.add(adapter or "default")
        held = factors.setdefault(weight, {}).setdefault(side, tensor.float())
        if not torch.equal(held, tensor.float()):
            raise DirectionsError(f"{origin}: two different tensors are given for {weight}.lora_{side}; keep one")
    if len(adapters) > 1:
        raise DirectionsError(f"{origin} holds several adapters, {', '.join(sorted(adapters))}; keep one")
    pairs = {}
    for weight, sides in factors.items():
        if "A" not in sides:
            raise DirectionsError(f"{origin}: {weight} has lora_B and no lora_A")
        rank, _ = sides["A"].shape
        B = sides.get("B", torch.zeros(1, rank))
        if B.shape[1] != rank:
            raise DirectionsError(f"{origin}: the factors of {weight} are of ranks {rank} and {B.shape[1]}")
        pairs[weight] = (B, sides["A"])
    provenance = {"method": "LoRA factors by name", "sources": [origin], "space": "parameter", "base_model": None}
    return ParameterDirections.of_factors(pairs, provenance)
