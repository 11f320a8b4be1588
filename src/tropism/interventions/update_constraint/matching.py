"""Which trainable LoRA factors each parameter direction meets; what meets none is an error that names it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tropism.directions.parameter import ParameterDirections
from tropism.errors import AttachError, DirectionsMismatch
from tropism.site import base_model


@dataclass(frozen=True, eq=False)
class Pair:
    """The trainable factors of one adapter at one weight: `ΔW = scale·B·A`, `A [r, d_in]`, `B [d_out, r]`."""

    weight: str
    adapter: str
    A: nn.Parameter
    B: nn.Parameter
    scale: float


def trainable_pairs(model: nn.Module, directions: ParameterDirections, optimizer: torch.optim.Optimizer) -> list[Pair]:
    """The pairs that `directions` constrain, in the order of their weights; every direction meets at least
    one.

    Raises:
        AttachError: a direction's weight has no trainable LoRA factors, or the optimizer does not hold them.
        DirectionsMismatch: a weight's shape or the model's name differs from what the directions were made
        on.
    """
    from peft.tuners.lora import LoraLayer

    inner = base_model(model)
    _check_base(inner, directions)
    modules = dict(inner.named_modules())
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    pairs: list[Pair] = []
    unmatched: list[str] = []
    for weight, factors in directions.factors.items():
        module: Any = modules.get(weight)
        names = module.lora_A.keys() if isinstance(module, LoraLayer) else ()
        found = [
            Pair(
                weight,
                name,
                module.lora_A[name].weight,
                module.lora_B[name].weight,
                float(module.scaling[name]),
            )
            for name in names
            if module.lora_A[name].weight.requires_grad or module.lora_B[name].weight.requires_grad
        ]
        if not found:
            unmatched.append(weight)
        for pair in found:
            if module.use_dora.get(pair.adapter, False):
                raise AttachError(f"UpdateConstraint: {weight} uses DoRA, whose change of the weight is not s·B·A")
            theirs, ours = (factors.B.shape[0], factors.A.shape[1]), (pair.B.shape[0], pair.A.shape[1])
            if theirs != ours:
                raise DirectionsMismatch(
                    f"the parameter direction at {weight} is {theirs[0]}x{theirs[1]}, the model's weight "
                    f"{ours[0]}x{ours[1]}; the direction was made on another model"
                )
            lost = [p for p in (pair.A, pair.B) if p.requires_grad and id(p) not in stepped]
            if lost:
                raise AttachError(
                    f"UpdateConstraint: the optimizer does not step the LoRA factors of {weight}; pass the "
                    "optimizer that trains this model, made after the adapter (and after FSDP sharded it)"
                )
        pairs += found
    if unmatched:
        shown = ", ".join(unmatched[:8]) + (f" and {len(unmatched) - 8} more" if len(unmatched) > 8 else "")
        raise AttachError(
            "UpdateConstraint: every parameter direction must match a trainable LoRA weight; unmatched are "
            f"{shown}; adapt these modules too (LoraConfig.target_modules), or make directions from an "
            "adapter of the same modules"
        )
    return pairs


def _check_base(inner: nn.Module, directions: ParameterDirections) -> None:
    theirs = directions.base_model
    ours = getattr(getattr(inner, "config", None), "name_or_path", "")
    # Only the last part: the same model is known by a hub name here and by a folder there.
    if theirs and ours and theirs.rstrip("/").split("/")[-1].lower() != ours.rstrip("/").split("/")[-1].lower():
        raise DirectionsMismatch(
            f"these parameter directions were made on {theirs!r}, the model is {ours!r}; use directions of "
            "this model (if both are the same weights, correct provenance['base_model'])"
        )
