"""What tells one model, or one set of chats, from another: short hashes that caches and tables carry."""

import hashlib
import sys
from collections.abc import Sequence

import torch
from torch import nn

from tropism.data.render import Rendered
from tropism.interventions.base import attachments
from tropism.site import base_model

SAMPLED = 4096
"""Elements of each parameter that are hashed, evenly spaced: any training step moves some of them."""


def model_fingerprint(model: nn.Module) -> str:
    """A hash of a model's parameters, active adapters and attached guards: 16 hexadecimal digits.

    Of each parameter the name, shape, dtype and up to 4096 evenly spaced elements count, so that hashing a large model
    takes no longer than a small one. An edit of single other elements would go unnoticed.
    """
    digest = hashlib.sha256(type(base_model(model)).__name__.encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, -(-flat.numel() // SAMPLED))].contiguous().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    for line in _adapter_state(model):
        digest.update(line.encode())
    for attachment in attachments(model):
        digest.update(repr(type(attachment.guard)).encode())
    return digest.hexdigest()[:16]


def data_fingerprint(rendered: Sequence[Rendered], ids: Sequence[str | int]) -> str:
    """A hash of chats as the model sees them: ids of chats, token ids and response masks; 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for chat, name in zip(rendered, ids, strict=True):
        digest.update(f"{name!r} {chat.input_ids} {[int(on) for on in chat.response_mask]}".encode())
    return digest.hexdigest()[:16]


def _adapter_state(model: nn.Module) -> list[str]:
    """Which adapters are live and at what scale: the same parameters compute other things with an adapter off."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [
        f"{name} {module.active_adapters} {module.disable_adapters} {getattr(module, 'scaling', None)}"
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
