"""The model's own answers to chats, greedily, for contrasts whose sides differ by their system prompt alone."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from tropism.data.chats import Chat
from tropism.data.generation import GenerateOptions, generate
from tropism.directions.read_once import once
from tropism.errors import DataError


def answer(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat],
    template_kwargs: Mapping[str, Any] | None,
    max_new_tokens: int,
    batch_size: int,
) -> tuple[Chat, ...]:
    """Append the model's greedy answer to each chat; raise `DataError` for a chat that gets an empty one."""
    options = GenerateOptions(max_new_tokens=max_new_tokens, batch_size=batch_size)
    asked = repr((chats, template_kwargs, options))
    texts = once(model, asked, partial(generate, model, tokenizer, chats, options, template_kwargs=template_kwargs))
    for index, (chat, text) in enumerate(zip(chats, texts, strict=True)):
        if not text.strip():
            raise DataError(
                f"the model answers chat {index} with nothing, so there is no response to read: "
                f"{str(chat[-1]['content'])[-80:]!r}; drop it, or give responses to Contrast.of_system_prompts"
            )
    return tuple((*chat, {"role": "assistant", "content": text}) for chat, text in zip(chats, texts, strict=True))
