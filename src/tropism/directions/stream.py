"""Activations of chats, a batch at a time: the decoder alone runs, pools inside its hooks, and stops early.

No logits are computed, no batch's activations outlive the batch, and the pass ends at the last site asked for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism import hooks
from tropism.data.collate import length_grouped, pad
from tropism.data.render import Positions, Rendered
from tropism.directions.finder import Unit
from tropism.errors import AttachError, DataError, DirectionsError
from tropism.site import Site, base_model

WINDOW_BATCHES = 8
"""Batches a side in one window: enough to group by length within it, few enough to hold."""


class _LastSiteReached(Exception):
    """Ends a forward pass whose remaining blocks nobody reads."""


@contextmanager
def reading(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode back afterwards; refuses a model with a guard attached."""
    modules = [module for model in models for module in model.modules()]
    for module in modules:
        for hook in module._forward_hooks.values():
            # By name, because directions lie below interventions: by this hook an Attachment counts passes.
            if getattr(hook, "__module__", "") == "tropism.interventions.base":
                raise AttachError(
                    "directions must be found on the bare model, and a guard is attached to this one; leave the "
                    "guard's 'with' block first"
                )
    modes = [(module, module.training) for module in modules]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """A PEFT model without its adapters; `requires_grad` is as before on leaving, which PEFT alone does not promise."""
    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():  # type: ignore[operator]
            yield
    finally:
        for parameter, flag in frozen:
            parameter.requires_grad_(flag)


def positions_of(rendered: Sequence[Rendered], positions: Positions) -> list[list[int]]:
    """Each chat's token indices at the named positions; `DataError` names a chat that has none."""
    named = []
    for row in rendered:
        if positions not in row.positions:
            raise DirectionsError(f"positions must be one of {', '.join(row.positions)}, found {positions!r}")
        at = row.positions[positions]
        if not at:
            raise DataError(
                f"positions={positions!r}, but a chat has no such token: {row.text[-80:]!r}; give it a response, or "
                f"use "
                f"positions='last_prompt'"
            )
        named.append(at)
    return named


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
    chat. Raises `DirectionsError` naming the site and the chat where one is not finite.
    """
    at = positions_of(rendered, positions)
    rows: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(rendered) for site in sites}
    inner = base_model(model)
    decoder = inner.get_decoder()  # type: ignore[operator]
    device = inner.get_input_embeddings().weight.device  # type: ignore[operator]
    for batch in length_grouped([len(row) for row in rendered], batch_size):
        chosen = [rendered[index] for index in batch]
        padded = pad(chosen, 0)
        chats = torch.tensor([row for row, index in enumerate(batch) for _ in at[index]], device=device)
        tokens = torch.tensor([token for index in batch for token in at[index]], device=device)
        counts = [len(at[index]) for index in batch]
        seen: dict[Site, Tensor] = {}

        def keep(site: Site, chats: Tensor, tokens: Tensor, counts: list[int], seen: dict[Site, Tensor]) -> hooks.Edit:
            def read(h: Tensor) -> None:
                picked = h[chats.to(h.device), tokens.to(h.device)].float()
                if unit == "chat":
                    sums = picked.new_zeros((len(counts), picked.shape[1])).index_add_(0, chats.to(h.device), picked)
                    picked = sums / torch.tensor(counts, device=h.device, dtype=sums.dtype).unsqueeze(1)
                seen[site] = picked
                if len(seen) == len(sites):
                    raise _LastSiteReached

            return read

        handles = [hooks.edit_activation(model, site, keep(site, chats, tokens, counts, seen)) for site in sites]
        try:
            with torch.no_grad():
                decoder(
                    input_ids=padded["input_ids"].to(device),
                    attention_mask=padded["attention_mask"].to(device),
                    use_cache=False,
                )
        except _LastSiteReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        sizes = [1] * len(batch) if unit == "chat" else counts
        for site in sites:
            for index, part in zip(batch, torch.split(seen[site].cpu(), sizes), strict=True):
                rows[site][index] = part
    gathered = {site: torch.cat(parts) for site, parts in rows.items()}
    for site, parts in rows.items():
        if not torch.isfinite(gathered[site]).all():
            bad = next(index for index, part in enumerate(parts) if not torch.isfinite(part).all())
            raise DirectionsError(
                f"activations at {site} must be finite, found NaN or infinity in chat {bad} "
                f"({rendered[bad].text[-60:]!r}); is the model's dtype wide enough?"
            )
    return gathered
