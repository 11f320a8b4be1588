"""Activations together with the gradient of each chat's own response loss with respect to them.

Examples in a batch do not interact, so the gradient of the sum of the chats' losses holds every chat's own gradient.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tropism import hooks
from tropism.data.batches import Batch, batches
from tropism.data.render import Positions, Rendered
from tropism.directions.finder import Unit
from tropism.directions.stream import positions_of
from tropism.errors import DirectionsError
from tropism.names import IGNORE
from tropism.site import Site, input_device


def activations_and_gradients(
    model: nn.Module,
    rendered: Sequence[Rendered],
    sites: Sequence[Site],
    positions: Positions,
    batch_size: int,
    unit: Unit,
) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    """Per site, `h` and `∂(mean response loss)/∂h` at the named positions, float32 `[n, d_model]` on the CPU.

    Rows are as in `stream.activations`; a chat's gradient is summed where its activations are averaged.
    """
    at = positions_of(rendered, positions)
    values: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(rendered) for site in sites}
    slopes: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(rendered) for site in sites}
    for batch in batches(rendered, batch_size, device=input_device(model)):
        logits, acts = _forward_with_graph(model, batch, sites)
        targets = batch.labels[:, 1:]
        losses = nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
        ).sum(dim=1) / (targets != IGNORE).sum(dim=1).clamp_min(1)
        grads = torch.autograd.grad(losses.sum(), [acts[site] for site in sites])
        for site, grad in zip(sites, grads, strict=True):
            h = acts[site].detach()
            for row, index in enumerate(batch.places):
                v, g = h[row, at[index]].float().cpu(), grad[row, at[index]].float().cpu()
                if not (torch.isfinite(v).all() and torch.isfinite(g).all()):
                    raise DirectionsError(
                        f"activations and gradients at {site} must be finite, found NaN in chat {index}"
                    )
                values[site][index] = v if unit == "token" else v.mean(dim=0, keepdim=True)
                slopes[site][index] = g if unit == "token" else g.sum(dim=0, keepdim=True)
    return (
        {site: torch.cat(parts) for site, parts in values.items()},
        {site: torch.cat(parts) for site, parts in slopes.items()},
    )


def _forward_with_graph(model: nn.Module, batch: Batch, sites: Sequence[Site]) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits, and the activations at sites, on a graph that begins before block 0; no parameter is unfrozen."""
    acts: dict[Site, Tensor] = {}
    handles = [hooks.edit_activation(model, Site(0, "resid_pre"), _begin_graph)]
    handles += [hooks.edit_activation(model, site, partial(acts.__setitem__, site)) for site in sites]
    try:
        with torch.enable_grad():
            logits: Tensor = model(**batch.inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, acts


def _begin_graph(h: Tensor) -> Tensor:
    return h if h.requires_grad else h.detach().requires_grad_()
