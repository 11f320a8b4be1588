"""Several chats in one row: only in a model in which no chat of a row sees another, which is found by running it.

Each chat's positions begin at 0 and the row has no attention mask, by which transformers' attention tells chats apart. A model
that carries a state from token to token, and attention that makes its mask by itself, would go on from one chat to the next.
"""

import inspect
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tropism import hooks
from tropism.activations.positions import RESPONSE_MASK
from tropism.blocks import probe_inputs, quiet_hooks, untouched
from tropism.errors import AttachError, ModelError
from tropism.site import base_model

BY_TOKEN = frozenset({RESPONSE_MASK, "route", "route_weights"})
"""The columns of a batch that mean the same whether a chat has one entry or each of its tokens has it."""

WITHOUT_CACHE = {"use_cache": False}
"""What a packed batch says beside its tensors: a model that makes itself a cache takes the row for one chat."""

LONGER_THAN_THE_PROBE = {
    "deepseek_v4": "it compresses keys of a row, not of a chat, once there are more than a window of them",
    "doge": "it chooses among the keys of a row, not of a chat, once there are more than a window of them",
}
"""Types of models whose chats see each other in long rows alone."""

_NEEDED = ("position_ids", *WITHOUT_CACHE)


def check_columns(keys: Collection[str]) -> None:
    """Raise `AttachError` where a guard reads a column of which a chat's entry cannot be given to its tokens."""
    unknown = sorted(set(keys) - BY_TOKEN)
    if unknown:
        raise AttachError(
            f"train.packing must be false with a guard that reads the batch's column {unknown[0]!r}, found true: it may mean "
            f"whole rows, and a packed row holds several chats"
        )


def check_packable(model: nn.Module, bfloat16: bool = False) -> None:
    """Raise `ModelError` where a chat in one row with another is not what it is alone; with `bfloat16` under autocast to it.

    Two chats are run in one row and in two. The gradient of the second one's logits must be exactly zero, in any dtype, at every
    embedding of the first; and all logits must be those of two rows, up to half the digits of the coarsest dtype in the model
    (of float32 at least, in which some models take their attention whatever they are in).
    """
    check_form(model)
    inner: Any = base_model(model)
    try:
        alone, packed, seen = _run(inner, bfloat16)
    except Exception as error:
        said = str(error).strip().partition("\n")[0][:200]
        raise _refused(inner, f"two short chats in one row ended in {type(error).__name__}: {said}") from error
    why = _apart(alone, packed, seen, _half_the_digits(inner, alone, bfloat16))
    if why:
        raise _refused(inner, why)


def check_form(model: nn.Module) -> None:
    """Raise `ModelError` where the model's form alone, without its weights, tells that no row of it can be packed."""
    inner: Any = base_model(model)
    lacking = _lacking(inner)
    if lacking:
        raise _refused(inner, lacking)


def _refused(inner: nn.Module, why: str) -> ModelError:
    return ModelError(
        f"train.packing must be false with {type(inner).__name__}, found true: {why}, so chats that share a row would not be "
        f"learned as they are alone"
    )


def _lacking(inner: Any) -> str:
    """Why the model cannot be given a packed row of any length; empty where it can."""
    kind = inner.config.get_text_config(decoder=True).model_type
    if kind in LONGER_THAN_THE_PROBE:
        return LONGER_THAN_THE_PROBE[kind]
    squares = [b.shape[-1] for b in inner.buffers() if _is_mask(b)]
    if squares:
        return f"it keeps a mask of its own, for rows of at most {squares[0]} tokens"
    names = inspect.signature(inner.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values()):
        return ""
    return next((f"it takes no {name}" for name in _NEEDED if name not in names), "")


def _is_mask(buffer: Tensor) -> bool:
    return buffer.dtype == torch.bool and buffer.dim() > 2 and buffer.shape[-1] == buffer.shape[-2]


def _run(inner: Any, bfloat16: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Logits `[2, T, V]` of two chats in two rows, and in one, and how much the second's depend on each embedding, `[2, T]`."""
    apart = probe_inputs(inner)
    rows, tokens = apart["input_ids"].shape
    device = apart["input_ids"].device
    positions = torch.arange(tokens, device=device)
    together = {
        "input_ids": apart["input_ids"].reshape(1, -1),
        "position_ids": positions.repeat(rows).unsqueeze(0),
        **WITHOUT_CACHE,
    }
    held: list[Tensor] = []

    def keep(_ids: Tensor, embedded: Tensor) -> Tensor:
        held.append(embedded.detach().requires_grad_())
        return held[-1].clone()  # some models write into what they are given

    autocast = torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()
    with untouched(inner), quiet_hooks(inner), autocast:
        alone = inner(**apart).logits
        handle = hooks.edit_linear(inner.get_input_embeddings(), keep)
        try:
            with torch.enable_grad():
                packed = inner(**together).logits.reshape(alone.shape)
                weights = torch.linspace(-1, 1, packed.shape[-1], device=packed.device)
                (gradient,) = torch.autograd.grad((packed[-1].float() * weights).sum(), held)
        finally:
            handle.remove()
    return alone, packed.detach(), gradient.abs().sum(-1).reshape(rows, tokens)


def _apart(alone: Tensor, packed: Tensor, seen: Tensor, allowed: float) -> str:
    """Why the chats in one row are not what they are in two; empty where they are."""
    if not bool(seen[-1].any()):
        return "what a token sees cannot be told, since no gradient comes back to its embedding"
    if not bool((seen[:-1] == 0).all()):
        return "a chat sees the one before it in its row"
    off = _difference(packed, alone)
    if off <= allowed:
        return ""
    return f"a chat has other logits in a row with another ({off:.1e} of their size, at most {allowed:.0e})"


def _difference(found: Tensor, expected: Tensor) -> float:
    wide, aim = found.double(), expected.double()
    off = float((wide - aim).norm() / aim.norm())
    return off if off == off else float("inf")


def _half_the_digits(inner: nn.Module, logits: Tensor, bfloat16: bool) -> float:
    autocast = {torch.bfloat16} if bfloat16 else set()
    dtypes = {p.dtype for p in inner.parameters() if p.is_floating_point() and p.dtype.itemsize > 1}
    return float(max(torch.finfo(dtype).eps for dtype in {torch.float32, logits.dtype, *autocast, *dtypes}) ** 0.5)
