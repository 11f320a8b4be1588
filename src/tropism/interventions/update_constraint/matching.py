"""Which trainable LoRA factors each parameter direction meets; what meets none is an error that names it."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tropism.adapters.factors import LoraFactors
from tropism.adapters.load import differs, name_of
from tropism.adapters.parts import at_weights, parts_of_model, require, trained_adapters
from tropism.adapters.read import adapters_in, live_factors
from tropism.directions.parameter import ParameterDirections
from tropism.errors import AttachError, DirectionsMismatch
from tropism.interventions.update_constraint.whole_weight import whole_weight
from tropism.site import base_model


def trainable_pairs(
    model: nn.Module, directions: ParameterDirections, optimizer: torch.optim.Optimizer
) -> list[LoraFactors]:
    """The pairs of factors that `directions` constrain, in the order of their weights; every direction meets at least one.

    Raises:
        AttachError: a direction's weight has no trainable LoRA factors, or factors that are not all that changes it;
            the optimizer does not hold them.
        DirectionsMismatch: a weight's shape or the model's name differs from what the directions were made
        on.
    """
    _check_base(model, directions)
    # Beside its factors, or instead of them, an adapter may have something else at a direction's own weight.
    parts = parts_of_model(model, trained_adapters(model))
    require("constrain", at_weights(parts, directions.weights), "UpdateConstraint", AttachError)
    training = [held for held in live_factors(model, adapters_in(model)) if held.parameters]
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    modules = dict(base_model(model).named_modules())
    pairs: list[LoraFactors] = []
    unmatched: list[str] = []
    for weight, factors in directions.factors.items():
        found = [held for held in training if held.place.weight == weight]
        if not found and weight in modules and (whole := whole_weight(modules[weight], weight)) is not None:
            found = [whole]
        if not found:
            unmatched.append(weight)
        for pair in found:
            _check_shape(weight, (factors.B.shape[0], factors.A.shape[1]), pair)
            _check_trained(weight, pair, stepped)
        pairs += found
    if unmatched:
        shown = ", ".join(unmatched[:8]) + (f" and {len(unmatched) - 8} more" if len(unmatched) > 8 else "")
        raise AttachError(
            "UpdateConstraint: every parameter direction must match a trainable LoRA weight, or a linear layer that "
            "is trained itself; unmatched are "
            f"{shown}; adapt these modules too (LoraConfig.target_modules), or make directions from an "
            "adapter of the same modules"
        )
    _check_alone(pairs)
    return pairs


def _check_shape(weight: str, theirs: tuple[int, int], pair: LoraFactors) -> None:
    if theirs != pair.shape:
        raise DirectionsMismatch(
            f"the parameter direction at {weight} is {theirs[0]}x{theirs[1]}, the model's weight "
            f"{pair.shape[0]}x{pair.shape[1]}; the direction was made on another model"
        )


def _check_trained(weight: str, pair: LoraFactors, stepped: set[int]) -> None:
    if any(id(p) not in stepped for p in pair.parameters):
        raise AttachError(
            f"UpdateConstraint: the optimizer does not step the LoRA factors of {weight}; pass the "
            "optimizer that trains this model, made after the adapter (and after FSDP sharded it)"
        )
    base = pair.place.base
    if base is not None and base.requires_grad and id(base) in stepped:
        raise AttachError(
            f"UpdateConstraint: the weight {weight} is trained itself beside its adapter, so that s·B·A is not all that "
            "changes; freeze the base model"
        )
    if pair.place.experts > 1 and isinstance(pair.held_a, DTensor):
        raise AttachError(
            f"UpdateConstraint: the factors of all experts at {pair.place.module} lie in one sharded tensor (FSDP2), of "
            "which one expert's part cannot be written; train without sharding"
        )


def _check_alone(pairs: Sequence[LoraFactors]) -> None:
    """Two pairs that share memory would undo each other's correction."""
    seen: dict[tuple[int, int], str] = {}
    for pair in pairs:
        for held in (pair.held_a, pair.held_b):
            if isinstance(held, DTensor) or not held.numel():
                continue
            key = (held.data_ptr(), pair.place.expert)
            if key in seen:
                raise AttachError(
                    f"UpdateConstraint: the adapters at {seen[key]} and {pair.place.weight} are tied (ensure_weight_tying) "
                    "and would undo each other's correction; train without tied adapters"
                )
            seen[key] = pair.place.weight


def _check_base(model: nn.Module, directions: ParameterDirections) -> None:
    if differs(directions.base_model, name_of(model)):
        raise DirectionsMismatch(
            f"these parameter directions were made on {directions.base_model!r}, the model is {name_of(model)!r}; use "
            "directions of this model (if both are the same weights, correct provenance['base_model'])"
        )
