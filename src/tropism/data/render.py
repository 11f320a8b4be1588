"""Chats to token ids: the one path by which training, evaluation and probes tokenise.

A chat is rendered to text once, by the tokenizer's own chat template, and tokenised once. Where each response begins
is found by rendering the messages before it: those ids must be a prefix of the whole (tokenising prompt and response
apart can move the boundary, and then the model is trained on tokens that it will never be given).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jinja2

from tropism.data.chats import Chat, check_chat
from tropism.data.template_date import freeze, split_date
from tropism.errors import DataError

Positions = Literal["last_prompt", "first_response", "response", "all"]
"""Named token positions: the last token before the response; its first; every token of all responses; every token."""


@dataclass(frozen=True)
class Rendered:
    """A chat as the model sees it.

    `input_ids` and `response_mask` have one entry a token; the mask is True on every token that an assistant turn
    supervises: its text and its end-of-turn token. `text` is what was tokenised.
    """

    input_ids: list[int]
    response_mask: list[bool]
    text: str

    @cached_property
    def positions(self) -> dict[str, list[int]]:
        """Token indices by name: `last_prompt`, `first_response` (of the last response), `response`, `all`."""
        response = [index for index, on in enumerate(self.response_mask) if on]
        start = len(self.input_ids)
        if response:
            start = response[-1]
            while start > 0 and self.response_mask[start - 1]:
                start -= 1
        return {
            "last_prompt": [start - 1] if start > 0 else [],
            "first_response": [start] if response else [],
            "response": response,
            "all": list(range(len(self.input_ids))),
        }

    def __len__(self) -> int:
        return len(self.input_ids)


def render(
    tokenizer: Any,
    chat: Chat,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    generation_prompt: bool | None = None,
    supervise: bool = True,
    where: str = "chat",
) -> Rendered:
    """Render a chat through the tokenizer's chat template and tokenise it once.

    Args:
        chat: messages; every assistant message is supervised.
        template_kwargs: passed to the template (Qwen3's `enable_thinking`, say).
        generation_prompt: end with the tokens that invite the assistant's answer; by default exactly where the chat
            does not end with an assistant message.
        supervise: find where each assistant turn begins and ends; otherwise the mask is False everywhere.
        where: begins the message of an error (`"train.jsonl line 7"`).

    Raises:
        DataError: the tokenizer has no template; the template rejects the chat (a system role, say); a prompt's ids
            are no prefix of the whole; an assistant message is empty once rendered; more than one BOS.

    Where a message after an assistant turn makes the template render that turn differently (Qwen3 drops earlier
    thinking), the prefix check fails and says so, unless nothing is supervised.
    """
    messages = list(check_chat(chat, where))
    if generation_prompt is None:
        generation_prompt = messages[-1]["role"] != "assistant"
    text = _template(tokenizer, messages, generation_prompt, template_kwargs, where)
    ids = _tokenise(tokenizer, text, where)
    mask = [False] * len(ids)
    ends = set(tokenizer.all_special_ids) | {tokenizer.eos_token_id}
    for index, message in enumerate(messages):
        if not supervise or message["role"] != "assistant":
            continue
        start = _prefix(tokenizer, messages[:index], True, template_kwargs, text, ids, where)
        last = index == len(messages) - 1
        stop = len(ids) if last else _prefix(tokenizer, messages[: index + 1], False, template_kwargs, text, ids, where)
        # supervise up to and with the end-of-turn token; what a template puts after it (a newline) is not the model's
        closing = [position for position in range(start, stop) if ids[position] in ends]
        stop = closing[-1] + 1 if closing else stop
        if stop <= start or (message["content"].strip() == "" and stop - start <= 1):
            raise DataError(f"{where}: message {index}, an assistant turn, is empty once rendered; give it a text")
        mask[start:stop] = [True] * (stop - start)
    return Rendered(ids, mask, text)


def render_prompt(
    tokenizer: Any, chat: Chat, *, template_kwargs: Mapping[str, Any] | None = None, where: str = "chat"
) -> Rendered:
    """Render a chat that the model is to answer: a last assistant message is dropped, the generation prompt added.

    Nothing in a prompt is supervised, so its mask is False everywhere, and a template may rewrite earlier turns.
    """
    messages = list(chat)
    if messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    return render(
        tokenizer,
        messages,
        template_kwargs=template_kwargs,
        generation_prompt=True,
        supervise=False,
        where=where,
    )


def _template(
    tokenizer: Any, messages: Sequence[Any], generation_prompt: bool, kwargs: Mapping[str, Any] | None, where: str
) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where}: the tokenizer of {tokenizer.name_or_path!r} has no chat template; use an instruct model, or set "
            f"tokenizer.chat_template"
        )
    variables, date = split_date(kwargs)
    # None is the tokenizer's own template.
    template = freeze(tokenizer.get_chat_template(), date) if date is not None else None
    try:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                chat_template=template,
                **variables,
            )
        )
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{where}: the chat template of {tokenizer.name_or_path!r} rejects the roles {roles}: {error}"
        ) from None


def _tokenise(tokenizer: Any, text: str, where: str) -> list[int]:
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and list(tokenizer("")["input_ids"])[:1] == [bos]
    if adds_bos and ids[:1] != [bos]:
        ids = [bos, *ids]
    if bos is not None and ids[:2] == [bos, bos]:
        raise DataError(f"{where}: the rendered chat begins with two BOS tokens; the chat template adds one too many")
    return ids


def _prefix(
    tokenizer: Any,
    messages: Sequence[Any],
    generation_prompt: bool,
    kwargs: Mapping[str, Any] | None,
    text: str,
    ids: list[int],
    where: str,
) -> int:
    """How many of `ids` the messages before a boundary take; the prefix property is checked."""
    if not messages:
        return 1 if ids[:1] == [tokenizer.bos_token_id] else 0
    before = _template(tokenizer, messages, generation_prompt, kwargs, where)
    prefix = _tokenise(tokenizer, before, where)
    if not text.startswith(before) or ids[: len(prefix)] != prefix:
        raise DataError(
            f"{where}: the first {len(messages)} messages do not render to a prefix of the whole chat, so it cannot be "
            f"said where the response begins; this chat template rewrites earlier turns (train on single turns, or set "
            f"template_kwargs)"
        )
    return len(prefix)
