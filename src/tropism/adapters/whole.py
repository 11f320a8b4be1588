"""A model whose weights were trained themselves, without an adapter: where they are put, and how they are read again."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tropism.adapters.folder import CONFIG
from tropism.errors import ModelError

MODEL_CONFIG = "config.json"


def with_own_weights(model: nn.Module) -> Any:
    """Give a model values of its own, in float32, where it shared another's; they train. Tied parameters stay tied."""
    for parameter in model.parameters():
        parameter.data = parameter.detach().clone().float()
        parameter.requires_grad_(True)
    return model


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a whole model, as `save_pretrained` writes it, and not an adapter."""
    return (folder / MODEL_CONFIG).is_file() and not (folder / CONFIG).is_file()


def load_whole(model: nn.Module, folder: Path) -> Any:
    """Put the weights of a folder into a model, which then has them for its own; every one must be there and fit.

    Raises:
        ModelError: a weight is missing, of another shape, or unknown to the model; a damaged file.
    """
    held: dict[str, torch.Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            held |= load_file(file)
    except SafetensorError as damage:
        raise ModelError(f"{folder} is damaged: {damage}") from None
    own = with_own_weights(model)
    ours = dict(own.named_parameters())
    known = {name for name, _ in own.named_parameters(remove_duplicate=False)} | {
        name for name, _ in own.named_buffers()
    }
    # Of weights that are tied, a file holds one, under either name.
    same = {
        id(p): [n for n, other in own.named_parameters(remove_duplicate=False) if other is p] for p in ours.values()
    }
    found = {name: next((held[n] for n in same[id(p)] if n in held), None) for name, p in ours.items()}
    wrong = [name for name, tensor in found.items() if tensor is None or tensor.shape != ours[name].shape]
    wrong += sorted(held.keys() - known)
    if wrong:
        raise ModelError(
            f"{folder} must hold the weights of this model, found {len(wrong)} missing, unknown or of another shape (first "
            f"{wrong[0]!r}); it was trained from another model"
        )
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(found[name])  # type: ignore[arg-type]
            parameter.requires_grad_(False)
    return own
