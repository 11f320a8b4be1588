"""The route column of a batch: what it may hold, and the weights that it gives each adapter at each position."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tropism.errors import DataError, ModelError
from tropism.names import ROUTE_IDS


@dataclass(eq=False)
class RoutedBatch:
    """The routing of one forward pass. `weights[a]` is `[B, 1, 1]` for rows, `[B, T, 1]` for tokens."""

    tokens: int
    weights: Mapping[str, Tensor]
    present: Mapping[str, bool]
    """Whether any position may update the adapter."""
    live: Tensor | None
    """0 where the forget adapter is not in the forward pass, shaped like the weights; None where it is everywhere."""
    tally: Mapping[str, float | int]
    reached: Callable[["RoutedBatch"], None]
    was_reached: bool = False

    def weights_for(self, adapter: str, y: Tensor) -> Tensor:
        """The adapter's weights, shaped to broadcast over `y`."""
        return self._fit(self.weights[adapter], y)

    def live_for(self, y: Tensor) -> Tensor:
        """`live` in the dtype of `y`, shaped to broadcast over it."""
        assert self.live is not None
        return self._fit(self.live, y).to(y.dtype)

    def reach(self) -> None:
        """Called in the backward pass: the first call reports this batch as part of the coming step."""
        if not self.was_reached:
            self.was_reached = True
            self.reached(self)

    def _fit(self, w: Tensor, y: Tensor) -> Tensor:
        if w.device != y.device:
            w = w.to(y.device)
        rows = w.shape[0]
        if y.ndim == 3 and y.shape[0] == rows and w.shape[1] in (1, y.shape[1]):
            return w
        if y.ndim == 2 and y.shape[0] == rows * self.tokens:
            return w.expand(rows, self.tokens, 1).reshape(-1, 1)
        if y.ndim == 4 and y.shape[0] == rows and self.tokens in y.shape[1:3]:
            # Latent attention expands its keys as [B, 1, T, d]; one row's weight fits on every axis, a token's on one.
            axes = [axis for axis in (1, 2) if y.shape[axis] == self.tokens]
            if w.shape[1] == 1 or len(axes) == 1:
                return w.unsqueeze(2 if axes[0] == 1 else 1)
        raise ModelError(
            "GradientRouting cannot tell which rows of the batch a linear sees: its output must be [B, T, d], [B·T, d], "
            f"[B, h, T, d] or [B, T, h, d] with B={rows} and T={self.tokens}, found {list(y.shape)}; leave this module out "
            "of target_modules"
        )


def read_route(
    route: object, shape: tuple[int, int], names: tuple[str, str], silence: bool, reached: Callable[[RoutedBatch], None]
) -> RoutedBatch:
    """The batch's routing from ids `[B]` or `[B, T]`; `silence` takes forget out of the pass on `retain` positions."""
    rows, tokens = shape
    if not isinstance(route, Tensor) or route.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        raise DataError(f"route must be an integer tensor of ids, found {_kind(route)}")
    if tuple(route.shape) not in ((rows,), (rows, tokens)):
        raise DataError(
            f"route must have one id a row [{rows}] or a token [{rows}, {tokens}], found shape {list(route.shape)}"
        )
    forget_only, retain_only = route == ROUTE_IDS["forget"], route == ROUTE_IDS["retain"]
    unknown = ~forget_only & ~retain_only & (route != ROUTE_IDS["unlabelled"])
    # One transfer for all that Python must know of the column.
    n_unknown, n_forget, n_retain = torch.stack([unknown.sum(), forget_only.sum(), retain_only.sum()]).tolist()
    if n_unknown:
        allowed = ", ".join(f"{index} {name}" for name, index in ROUTE_IDS.items())
        raise DataError(f"route must hold the ids {allowed}, found {int(route[unknown][0])}")
    n = route.numel()
    retain, forget = names
    return RoutedBatch(
        tokens,
        {retain: _allowed(forget_only), forget: _allowed(retain_only)},
        {retain: n_forget < n, forget: n_retain < n},
        _allowed(retain_only) if silence and n_retain else None,
        {"positions": n, "forget": n_forget, "retain": n_retain, "unlabelled": n - n_forget - n_retain},
        reached,
    )


def read_weights(
    weights: object,
    shape: tuple[int, int],
    names: tuple[str, str],
    signed: bool,
    reached: Callable[[RoutedBatch], None],
) -> RoutedBatch:
    """The batch's routing from `route_weights [B, T, 2]`, last axis (retain, forget); forget is live everywhere."""
    rows, tokens = shape
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        raise DataError(f"route_weights must be a floating-point tensor, found {_kind(weights)}")
    if tuple(weights.shape) != (rows, tokens, 2):
        raise DataError(
            f"route_weights must be [B, T, 2] = [{rows}, {tokens}, 2] (retain, forget), found shape "
            f"{list(weights.shape)}"
        )
    w = weights.detach()
    low, high, n_retain, n_forget = torch.stack(
        [w.min(), w.max(), w[..., 0].count_nonzero().to(w), w[..., 1].count_nonzero().to(w)]
    ).tolist()
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise DataError(f"route_weights must be finite, found values from {low} to {high}")
    if not signed and (low < 0 or high > 1):
        raise DataError(
            f"route_weights must lie in [0, 1], found values from {low:g} to {high:g}; "
            f"GradientRouting(signed=True) allows them"
        )
    retain, forget = names
    return RoutedBatch(
        tokens,
        {retain: w[..., :1], forget: w[..., 1:]},
        {retain: n_retain > 0, forget: n_forget > 0},
        None,
        {"positions": rows * tokens, "weight_retain": float(w[..., 0].sum()), "weight_forget": float(w[..., 1].sum())},
        reached,
    )


def _allowed(excluded: Tensor) -> Tensor:
    """1 where a position may update an adapter, 0 where it is excluded: float32 `[B, 1, 1]` or `[B, T, 1]`."""
    return (~excluded).to(torch.float32).view(excluded.shape[0], -1, 1)


def _kind(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
