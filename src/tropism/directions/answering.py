"""The model's own answers to chats, greedily, for contrasts whose sides differ by their system prompt alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tropism.data.chats import Chat
from tropism.data.collate import length_grouped, pad
from tropism.data.render import render_prompt
from tropism.errors import DataError


def answer(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat],
    template_kwargs: Mapping[str, Any] | None,
    max_new_tokens: int,
    batch_size: int,
) -> tuple[Chat, ...]:
    """Each chat with the model's greedy answer appended; `DataError` names one that is answered with nothing."""
    prompts = [
        render_prompt(tokenizer, chat, template_kwargs=template_kwargs, where=f"chat {i}")
        for i, chat in enumerate(chats)
    ]
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    configured = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    device = next(model.parameters()).device
    texts = [""] * len(chats)
    for batch in length_grouped([len(prompt) for prompt in prompts], batch_size):
        inputs = pad([prompts[index] for index in batch], pad_id, side="left")
        with torch.no_grad():
            out = model.generate(  # type: ignore[operator]
                input_ids=inputs["input_ids"].to(device),
                attention_mask=inputs["attention_mask"].to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=sorted(ends),
                pad_token_id=pad_id,
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        for index, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            texts[index] = text
    for index, text in enumerate(texts):
        if not text.strip():
            raise DataError(
                f"the model answers chat {index} with nothing, so there is no response to read: "
                f"{prompts[index].text[-80:]!r}; drop it, or give responses to Contrast.of_system_prompts"
            )
    return tuple((*chat, {"role": "assistant", "content": text}) for chat, text in zip(chats, texts, strict=True))
