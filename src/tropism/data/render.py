"""Chats to token ids: the one path by which training, evaluation and probes tokenise.

`lessons` says which characters of a chat are learned, `tokens` which tokens those are. A template or a tokenizer is
asked nothing anywhere else.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import Any, Literal

from tropism.data.chats import Chat, Supervise, check_chat, check_messages
from tropism.data.lessons import Lesson, prompt_of, rows, whole
from tropism.data.templates import ChatTemplate
from tropism.data.tokens import APART, Encoder
from tropism.errors import DataError

Positions = Literal["last_prompt", "first_response", "response", "all"]
"""Named token positions: the last token before the response; its first; every token of all responses; every token."""
CHUNK = 256
"""Chats that are tokenised in one call."""


@dataclass(frozen=True)
class Rendered:
    """A chat as the model sees it.

    `input_ids` and `response_mask` have one entry a token; the mask is True on exactly the tokens that are learned: an
    assistant turn's text and what ends it. `text` is what was tokenised; `notes` say what had to be done to the chat.
    """

    input_ids: list[int]
    response_mask: list[bool]
    text: str
    notes: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class BadRow:
    """A chat that cannot be trained on, with the reason, which begins with its name."""

    reason: str


def render(
    tokenizer: Any,
    chat: Chat,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    generation_prompt: bool | None = None,
    supervise: Supervise | bool = "all_turns",
    where: str = "chat",
) -> Rendered:
    """Render a chat through the tokenizer's chat template, whole, and tokenise it once.

    Args:
        chat: messages, or a raw text (`raw_text`).
        template_kwargs: passed to the template (Qwen3's `enable_thinking`, say).
        generation_prompt: end with the tokens that invite the assistant's answer; by default exactly where the chat
            does not end with an assistant message.
        supervise: `all_turns`, `last_turn` or `all_tokens`; False for a mask that is False everywhere.
        where: begins the message of an error (`"train.jsonl line 7"`).

    Raises:
        DataError: the template rejects the chat or leaves out a message of it; an assistant message is empty; more
            than one BOS.

    An earlier turn that the template shows otherwise than it was generated (Qwen3 leaves out earlier thinking) is
    marked as it is shown. `render_rows` cuts such a chat into one row a turn, which is what an experiment trains on.

    >>> render(tokenizer, chat).response_mask  # doctest: +SKIP
    """
    return next(
        render_many(
            tokenizer,
            [chat],
            template_kwargs=template_kwargs,
            generation_prompt=generation_prompt,
            supervise=supervise,
            names=[where],
        )
    )


def render_many(
    tokenizer: Any,
    chats: Iterable[Chat],
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    generation_prompt: bool | None = None,
    supervise: Supervise | bool = "all_turns",
    names: Iterable[str] | None = None,
) -> Iterator[Rendered]:
    """Render many chats, each as `render` does, in order; `names` begin the messages of errors.

    Chats are tokenised `CHUNK` at a time. The iterator holds no more than those.
    """
    template, encoder = _tools(tokenizer, template_kwargs)
    chosen = _supervised(supervise)
    for chunk in _chunks(chats, names):
        lessons = [whole(template, check_chat(chat, name), name, chosen, generation_prompt) for chat, name in chunk]
        yield from _rendered(encoder, lessons, [name for _, name in chunk])


def render_rows(
    tokenizer: Any,
    chats: Iterable[Chat],
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    supervise: Iterable[Supervise] | Supervise = "all_turns",
    names: Iterable[str] | None = None,
) -> Iterator[tuple[Rendered, ...] | BadRow]:
    """Render training chats: for each its rows, in order, or why it cannot be trained on.

    Most chats are one row. Where the template shows earlier turns otherwise than they were generated, a chat is one row
    a turn, cut after it, as the model sees it at inference. `supervise` is one for all chats or one for each.
    """
    template, encoder = _tools(tokenizer, template_kwargs)
    wanted = None if isinstance(supervise, str) else iter(supervise)
    for chunk in _chunks(chats, names):
        made: list[list[Lesson] | BadRow] = []
        for chat, name in chunk:
            one: Supervise = supervise if wanted is None else next(wanted)  # type: ignore[assignment]
            try:
                made.append(rows(template, check_chat(chat, name), name, one))
            except DataError as error:
                made.append(BadRow(str(error)))
        good = [(part, name) for part, (_, name) in zip(made, chunk, strict=True) if not isinstance(part, BadRow)]
        rendered = _rendered(
            encoder, [lesson for part, _ in good for lesson in part], [name for part, name in good for _ in part]
        )
        for part in made:
            yield part if isinstance(part, BadRow) else tuple(islice(rendered, len(part)))


def render_prompt(
    tokenizer: Any, chat: Chat, *, template_kwargs: Mapping[str, Any] | None = None, where: str = "chat"
) -> Rendered:
    """Render a chat that the model is to answer: a last assistant message is dropped, the generation prompt added.

    Nothing in a prompt is supervised, so its mask is False everywhere, and a template may rewrite earlier turns. A chat
    that begins with the assistant's answer has as its prompt what the template puts before one.
    """
    return next(render_prompts(tokenizer, [chat], template_kwargs=template_kwargs, names=[where]))


def render_prompts(
    tokenizer: Any,
    chats: Iterable[Chat],
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    names: Iterable[str] | None = None,
) -> Iterator[Rendered]:
    """Render many chats that the model is to answer, each as `render_prompt` does, in order."""
    template, encoder = _tools(tokenizer, template_kwargs)
    for chunk in _chunks(chats, names):
        lessons = []
        for chat, name in chunk:
            messages = check_messages(chat, name)
            if messages and messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            lessons.append(prompt_of(template, messages, name))
        yield from _rendered(encoder, lessons, [name for _, name in chunk])


def _tools(tokenizer: Any, template_kwargs: Mapping[str, Any] | None) -> tuple[ChatTemplate, Encoder]:
    template = ChatTemplate(tokenizer, template_kwargs)
    return template, Encoder(tokenizer, template.bos_begins_turns)


def _supervised(supervise: Supervise | bool) -> Supervise | None:
    if isinstance(supervise, bool):
        return "all_turns" if supervise else None
    if supervise not in ("all_turns", "last_turn", "all_tokens"):
        raise DataError(f"supervise must be all_turns, last_turn or all_tokens, found {supervise!r}")
    return supervise


def _chunks(chats: Iterable[Chat], names: Iterable[str] | None) -> Iterator[list[tuple[Chat, str]]]:
    """The chats with their names, `CHUNK` at a time."""
    chosen = (f"chat {index}" for index in count()) if names is None else names
    pairs = zip(chats, chosen, strict=names is not None)
    while chunk := list(islice(pairs, CHUNK)):
        yield chunk


def _rendered(encoder: Encoder, lessons: Sequence[Lesson], names: Sequence[str]) -> Iterator[Rendered]:
    for lesson, (ids, mask, apart) in zip(lessons, encoder.encode(lessons, names), strict=True):
        yield Rendered(ids, mask, lesson.text, (*lesson.notes, APART) if apart else lesson.notes)
