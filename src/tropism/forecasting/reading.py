"""Each chat's mean activation over its response tokens: what every projection is made of."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tropism.data.chats import Chat
from tropism.data.render import render
from tropism.directions.stream import activations, reading
from tropism.site import Site


def read(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat],
    sites: Sequence[Site],
    *,
    batch_size: int,
    template_kwargs: Mapping[str, Any] | None,
    where: str = "row",
) -> dict[Site, Tensor]:
    """Each chat's mean activation over its response tokens, `[n, d]` float32 per site."""
    rendered = [
        render(tokenizer, chat, template_kwargs=template_kwargs, where=f"{where} {index}")
        for index, chat in enumerate(chats)
    ]
    with reading(model):
        return activations(model, rendered, list(sites), "response", batch_size)
