"""Mean projection onto a direction at named positions: where a model stands, before and after training."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import nn

from tropism.data.chats import Chat, Example
from tropism.data.render import Positions, render
from tropism.directions.artifact import Directions
from tropism.directions.stream import activations
from tropism.errors import DataError, UsageError
from tropism.probes.response_loss import as_measured


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
        chat = item.content if isinstance(item, Example) else item
        rendered.append(render(tokenizer, chat, template_kwargs=template_kwargs, where=f"chat {name!r}"))
        if not rendered[-1].positions[positions]:
            raise DataError(
                f"chat {name!r} has no token at positions={positions!r}; use last_prompt for chats without response"
            )
    with as_measured(model):
        pooled = activations(model, rendered, directions.sites, positions, batch_size)
    tables = []
    for site in directions.sites:
        v = directions.vectors[site][0]
        tables.append(
            pd.DataFrame({"chat": names, "site": str(site), "projection": (pooled[site] @ (v / v.norm())).numpy()})
        )
    return pd.concat(tables, ignore_index=True)
