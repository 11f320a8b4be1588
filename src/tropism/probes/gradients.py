"""Every chat's own activation gradient at every site, from one forward and one backward pass per batch."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tropism import hooks
from tropism.data.batches import Batch, batches, padding_id
from tropism.data.chats import Chat, Example
from tropism.data.render import Positions, Rendered, render
from tropism.directions import provenance
from tropism.errors import DataError, SiteError, UsageError
from tropism.probes.fingerprint import data_fingerprint, model_fingerprint
from tropism.probes.gradient_cache import FORMAT, GradientCache, Store, in_memory
from tropism.probes.response_loss import as_measured, check_lengths, response_losses
from tropism.site import Site, input_device, width

_HALF_SCALE = 2.0**10
"""A float16 model's loss is scaled by this, and its gradients back in float32: below 6e-8 float16 has nothing left."""


def collect_gradients(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat | Example],
    sites: Sequence[Site],
    positions: Positions = "response",
    batch_size: int = 8,
    *,
    per_token: bool = False,
    folder: str | Path | None = None,
    padding_side: Literal["right", "left"] = "right",
    template_kwargs: Mapping[str, Any] | None = None,
) -> GradientCache:
    """Collect `g_i = ∂L_i/∂h`, `L_i` chat i's mean loss over its response tokens, at every site, pooled over positions.

    Chats of a batch do not interact, so the gradient of `Σ_i L_i` is in each row that chat's own, exactly; and any
    number of directions is then one matmul on the cache (`pressure`). Pooling is the mean over the named tokens, in
    float32. Runs with dropout off and parameters frozen; leaves the model as it was. Below the lowest site nothing is
    differentiated. Autocast, if the caller has it on, applies to the model; loss and pooling stay in float32.

    Args:
        chats: each must hold a response; an `Example` keeps its id, a plain chat is called by its number.
        positions: `response` (mean over response tokens), `last_prompt`, `first_response`, or `all`.
        per_token: one row for each of the named tokens and no pooling.
        folder: keep the cache there, memory-mapped: peak memory no longer grows with the number of gradients, and a
            call that was interrupted goes on where it stopped.
        padding_side: changes nothing but rounding.

    Raises:
        DataError: no chats; a chat without a response or longer than the context; an id twice; a gradient that is not
            finite, naming the chat.
        SiteError: no sites, a site twice, or one that the model lacks.
        RunFolderError: the folder holds a cache of another model, other data or other options.

    Example:
        cache = tp.collect_gradients(model, tokenizer, chats, tp.sites(model, "25%..75%"))
        cache.gradients[tp.Site(12)]  # float32 [N, d_model]
    """
    if batch_size < 1:
        raise UsageError(f"collect_gradients: batch_size must be at least 1, found {batch_size}")
    if not sites or len(set(sites)) < len(sites):
        raise SiteError(
            f"collect_gradients: sites must be different sites, at least one, found {[str(s) for s in sites]}"
        )
    for site in sites:
        hooks.module_at(model, site)
    names, rendered = render_all(tokenizer, chats, template_kwargs)
    check_lengths(model, rendered, [f"chat {name!r}" for name in names])
    places = [chat.positions[positions] for chat in rendered]
    for name, found in zip(names, places, strict=True):
        if not found:
            raise DataError(f"chat {name!r} has no token at positions={positions!r}, so nothing can be pooled there")
    row_token = [token for found in places for token in found] if per_token else [-1] * len(places)
    rows = [len(found) if per_token else 1 for found in places]
    manifest = {
        "format": FORMAT, "model": model_fingerprint(model), "base": provenance.of_model(model),
        "data": data_fingerprint(rendered, names), "positions": positions, "per_token": per_token,
        "sites": sorted(str(site) for site in sites), "width": width(model), "rows": rows, "chats": names,
    }  # fmt: skip
    starts = [0, *torch.tensor(rows).cumsum(0).tolist()]
    store = Store.create_or_resume(Path(folder), manifest, row_token) if folder is not None else None
    done = store.finished() if store else {}
    todo = [index for index in range(len(rendered)) if index not in done]
    kept = {} if store else {site: torch.empty((len(row_token), width(model))) for site in sites}
    with as_measured(model):
        waiting = [rendered[index] for index in todo]
        pad_id, device = padding_id(tokenizer), input_device(model)
        for batch in batches(waiting, batch_size, pad_id=pad_id, side=padding_side, device=device):
            chosen = [todo[place] for place in batch.places]
            losses, gradients = _batch(model, batch, sites)
            pooled = {
                site: [_pool(g[row], places[i], per_token) for row, i in enumerate(chosen)]
                for site, g in gradients.items()
            }
            _check_finite(losses, pooled, [names[i] for i in chosen])
            facts = {
                i: (loss, len(rendered[i]), len(rendered[i].positions["response"]))
                for i, loss in zip(chosen, losses.tolist(), strict=True)
            }
            if store:
                store.write([starts[i] for i in chosen], pooled, facts)
            else:
                for site, blocks in pooled.items():
                    for i, block in zip(chosen, blocks, strict=True):
                        kept[site][starts[i] : starts[i + 1]] = block
                done |= facts
    if store:
        return store.cache()
    row_chat = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
    return in_memory(manifest, kept, done, row_chat, torch.tensor(row_token))


def render_all(
    tokenizer: Any, chats: Sequence[Chat | Example], template_kwargs: Mapping[str, Any] | None
) -> tuple[list[str | int], list[Rendered]]:
    if not chats:
        raise DataError("collect_gradients: chats must hold at least one chat, found none")
    names: list[str | int] = [chat.id if isinstance(chat, Example) else i for i, chat in enumerate(chats)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"collect_gradients: every chat needs an id of its own, found {twice!r} twice")
    rendered = []
    for name, item in zip(names, chats, strict=True):
        chat = item.content if isinstance(item, Example) else item
        rendered.append(render(tokenizer, chat, template_kwargs=template_kwargs, where=f"chat {name!r}"))
    return names, rendered


def _batch(model: nn.Module, batch: Batch, sites: Sequence[Site]) -> tuple[Tensor, dict[Site, list[Tensor]]]:
    """Return the losses `[B]` on the CPU and, per site and chat, its gradient `[n_tokens, d_model]`, unpadded; float32."""
    real = batch.attention_mask.bool()
    seen: dict[Site, Tensor] = {}
    with ExitStack() as stack, torch.enable_grad():
        for site in sites:
            stack.callback(hooks.edit_activation(model, site, _keep(site, seen)).remove)
        losses = response_losses(model, batch)
        # Taken now: a checkpoint that runs its block again in the backward pass would put other tensors in their place.
        activations = [seen[site] for site in sites]
        scale = _HALF_SCALE if activations[0].dtype == torch.float16 else 1.0
        found = torch.autograd.grad(losses.sum() * scale, activations)
    gradients = {}
    for site, gradient in zip(sites, found, strict=True):
        wide = gradient.float().div_(scale) if scale != 1.0 else gradient.float()
        gradients[site] = [wide[row, mask.to(wide.device)] for row, mask in enumerate(real)]
    return losses.detach().float().cpu(), gradients


def _keep(site: Site, seen: dict[Site, Tensor]) -> hooks.Edit:
    def edit(h: Tensor) -> Tensor:
        # The graph begins at the lowest site: with every parameter frozen, nothing below it requires a gradient.
        seen[site] = h if h.requires_grad else h.detach().requires_grad_(True)
        return seen[site]

    return edit


def _pool(gradient: Tensor, places: Sequence[int], per_token: bool) -> Tensor:
    """`[n_tokens, d_model]` → the named tokens' mean `[1, d_model]`, or themselves."""
    chosen = gradient[list(places)]
    return (chosen if per_token else chosen.mean(dim=0, keepdim=True)).cpu()


def _check_finite(losses: Tensor, pooled: Mapping[Site, Sequence[Tensor]], names: Sequence[str | int]) -> None:
    for row, name in enumerate(names):
        if not torch.isfinite(losses[row]):
            raise DataError(
                f"chat {name!r}: its loss is {float(losses[row])}, not a finite number; check the model's dtype"
            )
        for site, blocks in pooled.items():
            if not torch.isfinite(blocks[row]).all():
                raise DataError(
                    f"chat {name!r}: its gradient at {site} is not finite (NaN or infinity); check the model's dtype"
                )
