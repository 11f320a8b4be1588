"""Mean projection onto a direction at named positions: where a model stands, before and after training."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism import hooks
from tropism.data.chats import Chat, Example
from tropism.data.collate import length_grouped, pad
from tropism.data.render import Positions, Rendered, render
from tropism.directions.artifact import Directions
from tropism.errors import DataError, UsageError
from tropism.probes.response_loss import as_measured, head_reads_only
from tropism.site import Site


def projection(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat | Example],
    directions: Directions,
    positions: Positions = "last_prompt",
    batch_size: int = 8,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """`⟨h̄, v̂⟩` of every chat at every site, `h̄` the mean activation over the named positions; a tidy table.

    Columns: `chat, site, projection`. Prompts without a response have `last_prompt` and `all`. Runs in evaluation mode
    and computes no logits.

    Raises:
        DataError: no chats, or one that lacks the positions. UsageError: several directions at a site.
        DirectionsMismatch: the directions are of another model.
    """
    directions.check_model(model)
    if not chats:
        raise DataError("projection: chats must hold at least one chat, found none")
    several = [site for site in directions.sites if directions.vectors[site].shape[0] > 1]
    if several:
        raise UsageError(
            f"projection takes one direction a site, found {len(directions.vectors[several[0]])} at {several[0]}"
        )
    names = [chat.id if isinstance(chat, Example) else index for index, chat in enumerate(chats)]
    rendered = []
    for name, item in zip(names, chats, strict=True):
        chat = item.chat if isinstance(item, Example) else item
        rendered.append(render(tokenizer, chat, template_kwargs=template_kwargs, where=f"chat {name!r}"))
        if not rendered[-1].positions[positions]:
            raise DataError(
                f"chat {name!r} has no token at positions={positions!r}; use last_prompt for chats without response"
            )
    pooled = mean_activations(model, rendered, directions.sites, positions, tokenizer.pad_token_id or 0, batch_size)
    tables = []
    for site in directions.sites:
        v = directions.vectors[site][0]
        tables.append(
            pd.DataFrame({"chat": names, "site": str(site), "projection": (pooled[site] @ (v / v.norm())).numpy()})
        )
    return pd.concat(tables, ignore_index=True)


def mean_activations(
    model: nn.Module,
    rendered: Sequence[Rendered],
    sites: Sequence[Site],
    positions: Positions,
    pad_id: int,
    batch_size: int,
) -> dict[Site, Float[Tensor, "n d"]]:
    """Each chat's mean activation over its named positions, float32 on the CPU, one row a chat."""
    rows: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(rendered) for site in sites}
    device = next(model.parameters()).device
    nowhere = torch.empty(0, dtype=torch.int64)
    with as_measured(model), torch.no_grad(), ExitStack() as stack:
        seen: dict[Site, Tensor] = {}
        for site in sites:
            stack.callback(hooks.edit_activation(model, site, _keep(site, seen)).remove)
        stack.enter_context(head_reads_only(model, nowhere, nowhere))
        for group in length_grouped([len(chat) for chat in rendered], batch_size):
            batch = pad([rendered[i] for i in group], pad_id)
            model(**{name: batch[name].to(device) for name in ("input_ids", "attention_mask")}, use_cache=False)
            for site in sites:
                for row, i in enumerate(group):
                    rows[site][i] = seen[site][row, rendered[i].positions[positions]].float().mean(dim=0).cpu()
    return {site: torch.stack(found) for site, found in rows.items()}


def _keep(site: Site, seen: dict[Site, Tensor]) -> hooks.Edit:
    def read(h: Tensor) -> None:
        seen[site] = h

    return read
