"""Activations of chats, a batch at a time: pooled inside the hooks, in passes that end at the last site asked for.

No logits are computed and no batch's activations outlive the batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism import hooks
from tropism.activations.attached import attached
from tropism.activations.mode import evaluation_mode
from tropism.data.batches import Batch, batches
from tropism.data.render import Positions, Rendered
from tropism.directions.finder import Unit
from tropism.directions.read_once import asked_ahead, once
from tropism.errors import AttachError, DataError, DirectionsError
from tropism.site import Site, input_device, uncompiled

WINDOW_BATCHES = 8
"""Batches a side in one window: enough to group by length within it, few enough to hold."""


class _LastSiteReached(Exception):
    """Ends a forward pass whose remaining blocks nobody reads."""


@contextmanager
def reading(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode afterwards; refuse a model with a guard attached."""
    for model in models:
        if guards := attached(model):
            raise AttachError(
                f"directions must be found on the bare model, and {guards[0].name} is attached to this one; leave its "
                "'with' block first"
            )
    with evaluation_mode(*models):
        yield


def positions_of(rendered: Sequence[Rendered], positions: Positions) -> list[list[int]]:
    """Each chat's token indices at the named positions; `DataError` names a chat that has none."""
    named = []
    for row in rendered:
        if positions not in row.positions:
            raise DirectionsError(f"positions must be one of {', '.join(row.positions)}, found {positions!r}")
        at = row.positions[positions]
        if not at:
            raise DataError(
                f"positions={positions!r}, but a chat has no such token: {row.text[-80:]!r}; "
                "give it a response, or use positions='last_prompt'"
            )
        named.append(at)
    return named


class _Pass:
    """One forward pass over a batch that ends at the last site: what was read at each site, float32, row by row."""

    def __init__(self, sites: Sequence[Site], at: Sequence[Sequence[int]], unit: Unit, device: torch.device) -> None:
        self.read: dict[Site, Tensor] = {}
        self._sites, self._unit = sites, unit
        self._counts = torch.tensor([len(tokens) for tokens in at], device=device)
        self._rows = torch.tensor([row for row, tokens in enumerate(at) for _ in tokens], device=device)
        self._tokens = torch.tensor([token for tokens in at for token in tokens], device=device)

    def run(self, model: nn.Module, batch: Batch) -> None:
        """Call the model as its user does, so that what hangs on it is seen; the blocks above the last site are skipped."""
        handles = [hooks.edit_activation(model, site, partial(self._keep, site)) for site in self._sites]
        try:
            with torch.no_grad():
                uncompiled(model)(**batch.inputs, use_cache=False)
        except _LastSiteReached:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, site: Site, h: Tensor) -> None:
        rows, tokens = self._rows.to(h.device), self._tokens.to(h.device)
        picked = h[rows, tokens].float()
        if self._unit == "chat":
            sums = picked.new_zeros((len(self._counts), picked.shape[1])).index_add_(0, rows, picked)
            picked = sums / self._counts.to(sums).unsqueeze(1)
        self.read[site] = picked
        if len(self.read) == len(self._sites):
            raise _LastSiteReached


def activations(
    model: nn.Module,
    rendered: Sequence[Rendered],
    sites: Sequence[Site],
    positions: Positions,
    batch_size: int,
    unit: Unit = "chat",
) -> dict[Site, Float[Tensor, "n d"]]:
    """Activations at named positions, float32 on the CPU, in the order of `rendered`.

    `unit="chat"`: each chat's mean over its positions, `n` chats; `unit="token"`: every position's own row, chat by
    chat. The model is read in the mode that it is in. Inside `read_once`, chats that were read before are not read again.
    Raises `DirectionsError` naming the site and the chat where an activation is not finite.
    """
    for site in sites:
        hooks.module_at(model, site)
    at = positions_of(rendered, positions)
    if unit == "token":
        return _read(model, rendered, sites, at, batch_size, unit)  # a row a token is too much to keep
    chats = tuple((*row.input_ids, -1, *tokens) for row, tokens in zip(rendered, at, strict=True))
    held: dict[Site, Tensor] = once(model, ("activations", chats, batch_size), dict)
    missing = {site for site in sites if site not in held}
    if missing:
        missing |= {site for site in asked_ahead(model) if site not in held}
        held.update(_read(model, rendered, sorted(missing), at, batch_size, unit))
    return {site: held[site].clone() for site in sites}


def _read(
    model: nn.Module,
    rendered: Sequence[Rendered],
    sites: Sequence[Site],
    at: Sequence[Sequence[int]],
    batch_size: int,
    unit: Unit,
) -> dict[Site, Tensor]:
    """Run the passes of `activations`; `at` are each chat's token indices."""
    rows: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(rendered) for site in sites}
    device = input_device(model)
    for batch in batches(rendered, batch_size, device=device):
        here = [at[place] for place in batch.places]
        one = _Pass(sites, here, unit, device)
        one.run(model, batch)
        sizes = [1 if unit == "chat" else len(tokens) for tokens in here]
        for site in sites:
            for place, part in zip(batch.places, torch.split(one.read[site].cpu(), sizes), strict=True):
                rows[site][place] = part
    gathered = {site: torch.cat(parts) for site, parts in rows.items()}
    for site, parts in rows.items():
        if not torch.isfinite(gathered[site]).all():
            bad = next(index for index, part in enumerate(parts) if not torch.isfinite(part).all())
            raise DirectionsError(
                f"activations at {site} must be finite, found NaN or infinity in chat {bad} "
                f"({rendered[bad].text[-60:]!r}); is the model's dtype wide enough?"
            )
    return gathered
