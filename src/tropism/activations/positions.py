"""Which tokens of a batch a guard edits or a capture reads, taken from what the model is called with.

`response` are the tokens whose own label is supervised: the response's text and its end-of-turn token. The position
*before* each of them, which predicts it, is another one; the first response token is predicted from the last prompt
token, and that one is not part of `response`.
"""

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tropism import hooks
from tropism.errors import GuardNotInForce, UsageError
from tropism.names import IGNORE
from tropism.site import base_model

GuardPositions = Literal["all", "response"]

RESPONSE_MASK = "response_mask"
"""The batch's column that says which tokens are a response: bool `[B, T]`."""


NO_MASK = (
    "positions={positions!r} needs to know which tokens are the response, and the model was called with neither "
    "response_mask nor labels; pass response_mask=[B, T] in the batch (it is taken out again before the model sees "
    "it), or labels with -100 elsewhere, or use positions='all'"
)
_READERS: WeakKeyDictionary[nn.Module, "BatchReader"] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class _Batch:
    """What one forward pass said about its tokens: bool `[B, T]`, or None where it did not say."""

    response: Tensor | None = None
    attended: Tensor | None = None


class BatchReader:
    """Sees the batch that a model is called with, and takes `response_mask` out of it; shared by all who ask.

    Obtained by `read_batches`; `.remove()` it as often as it was obtained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._users = 0
        self._model = model
        self._batch = _Batch()
        self._handles = [*hooks.around_pass(model, self._before), *hooks.after_blocks(model, self._remember)]

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A wrapper takes positional arguments as the model inside does.
        called = base_model(self._model) if module is self._model else module
        names = inspect.signature(called.forward).parameters
        named = dict(zip(names, args, strict=False)) | kwargs
        mask, labels = named.get(RESPONSE_MASK), named.get("labels")
        response = mask.bool() if mask is not None else None if labels is None else labels != IGNORE
        attention = named.get("attention_mask")
        # Four-dimensional masks say who sees whom, not which tokens are padding.
        attended = attention.bool() if isinstance(attention, Tensor) and attention.dim() == 2 else None
        self._batch = _Batch(response, attended)
        if RESPONSE_MASK in kwargs:
            return args, {name: value for name, value in kwargs.items() if name != RESPONSE_MASK}
        return None

    def _remember(self, h: Tensor) -> None:
        """Put this pass's batch back in place when its backward pass comes through this block.

        Checkpointing then recomputes the block, and by now a later forward pass may have been made.
        """
        if h.requires_grad:
            hooks.edit_gradient(h, partial(self._put_back, self._batch))

    def _put_back(self, batch: _Batch, _gradient: Tensor) -> None:
        self._batch = batch

    def mask(self, positions: str, like: Tensor) -> Tensor:
        """Bool `[..., 1]` for an activation `[..., d]` (`[B, T, d]`, or flattened to tokens by some submodules).

        `all` (every token that is not padding), `response`, `first_response` and `last_prompt` (of each row's last
        response). Raises `GuardNotInForce` where the batch does not say.
        """
        response, attended = self._batch.response, self._batch.attended
        if positions == "all":
            if attended is None:
                return torch.ones((*like.shape[:-1], 1), dtype=torch.bool, device=like.device)
            # With a cache the attention mask is longer than the tokens of this call: the last ones are these.
            on = attended[:, -like.shape[1] :] if like.dim() == 3 else attended
        elif response is None:
            raise GuardNotInForce(NO_MASK.format(positions=positions))
        else:
            on = response if positions == "response" else _edge(response, positions)
        # [T, B, d] has as many tokens as [B, T, d]: a count proves nothing.
        if on.numel() * like.shape[-1] != like.numel() or (like.dim() == 3 and on.shape != like.shape[:2]):
            raise GuardNotInForce(
                f"positions={positions!r}: the batch marks {list(on.shape)} tokens and the activation has "
                f"{list(like.shape[:-1])}; response_mask must have one entry for every token that the blocks see"
            )
        return on.reshape(*like.shape[:-1], 1).to(like.device)

    def remove(self) -> None:
        """One user fewer; the last one takes the hook away."""
        self._users -= 1
        if self._users == 0:
            _READERS.pop(self._model, None)
            for handle in self._handles:
                handle.remove()


def read_batches(model: nn.Module) -> BatchReader:
    """The reader of what `model` is called with: one to a model, since `response_mask` can be taken out only once."""
    reader = _READERS.get(model)
    if reader is None:
        reader = _READERS[model] = BatchReader(model)
    reader._users += 1
    return reader


def _edge(response: Tensor, positions: str) -> Tensor:
    """The first token of each row's last response, or the token before it; rows without one have none."""
    if positions not in ("first_response", "last_prompt"):
        raise UsageError(f"positions must be all, response, first_response or last_prompt, found {positions!r}")
    before = torch.nn.functional.pad(response[:, :-1], (1, 0))
    starts = response & ~before
    # The last start of a row is the one after which no other start follows.
    later = starts.flip(1).cumsum(1).flip(1)
    first = starts & (later == 1)
    return first if positions == "first_response" else torch.nn.functional.pad(first[:, 1:], (0, 1))
