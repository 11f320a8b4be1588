"""What a guard refuses to be attached to, and why; found by looking at the model, without importing the wrappers."""

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tropism.errors import AttachError

FSDP1 = (
    "{what} under FSDP1: it frees and rebuilds flattened copies of the weights around every block, so that neither an "
    "edit nor a direction in weight space can be held to what it promises; use FSDP2 (fsdp_version: 2)"
)
DEEPSPEED = (
    "{what} under DeepSpeed: it reduces gradients and steps the optimizer inside its own backward pass, where no guard "
    "can see what it does; use DDP or FSDP2"
)
REENTRANT = (
    "{what} under reentrant gradient checkpointing: it runs each block without a graph and again in the backward pass, "
    "so that guards on gradients are dropped or doubled without a sign; pass "
    "gradient_checkpointing_kwargs={{'use_reentrant': False}} (in LLaMA-Factory use_reentrant_gc: false; the kinds that "
    "Unsloth and Axolotl bring, gradient_checkpointing: unsloth or offload, are reentrant too: use true)"
)


def check(model: nn.Module, what: str) -> None:
    """Raise `AttachError`, beginning with `what`, where no guard can be trusted on this model as it is now."""
    for module in model.modules():
        home, name = type(module).__module__, type(module).__name__
        if name == "FullyShardedDataParallel" or home.startswith("torch.distributed.fsdp.fully_sharded"):
            raise AttachError(FSDP1.format(what=what))
        if home.split(".")[0] == "deepspeed":
            raise AttachError(DEEPSPEED.format(what=what))
    for parameter in model.parameters():
        # The marks that the two leave on the parameters of a model that they wrapped from outside.
        if getattr(parameter, "_fsdp_flattened", False):
            raise AttachError(FSDP1.format(what=what))
        if hasattr(parameter, "ds_id"):
            raise AttachError(DEEPSPEED.format(what=what))
    for module in _checkpointed(model):
        if _reentrant(getattr(module, "_gradient_checkpointing_func", None)):
            raise AttachError(REENTRANT.format(what=what))


def _reentrant(function: Any) -> bool:
    """Whether a checkpointing function is of the reentrant kind, whatever it is wrapped in.

    Torch's default is still the reentrant kind. The offloading kinds of Unsloth and Axolotl are, whatever they are
    told, and so is any `autograd.Function`. LLaMA-Factory wraps its function with `functools.wraps`.
    """
    function = inspect.unwrap(function) if callable(function) else function
    if isinstance(function, functools.partial):
        told = function.keywords.get("use_reentrant", True)
        return bool(told) or _reentrant_by_kind(inspect.unwrap(function.func))
    return _reentrant_by_kind(function)


def _reentrant_by_kind(function: Any) -> bool:
    home = (getattr(function, "__module__", None) or "").split(".")[0]
    owner = getattr(function, "__self__", None)
    is_autograd = isinstance(owner, type) and issubclass(owner, torch.autograd.Function)
    return home in ("unsloth", "unsloth_zoo", "axolotl") or is_autograd


def checkpoints(model: nn.Module) -> bool:
    """Whether any block is recomputed in the backward pass."""
    return next(_checkpointed(model), None) is not None


def _checkpointed(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if getattr(module, "gradient_checkpointing", False))
