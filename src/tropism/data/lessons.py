"""Which characters of a rendered chat are learned: the chat as one text, or cut into the rows on which it is trained.

Where the template shows a turn otherwise in the whole chat than in the chat cut after it (Qwen3 leaves out earlier
thinking), training on the whole would teach what inference never asks; such a chat is one row a turn.
"""

import json
from dataclasses import dataclass
from typing import Any

from tropism.data.chats import Supervise, is_raw_text
from tropism.data.marks import Place, spoken
from tropism.data.templates import ChatTemplate
from tropism.data.turns import Messages, Turn, earlier_turn, last_turn, turn_as_shown
from tropism.errors import DataError

LEFT_OFF = "what follows the last answer was left off"
CUT = "the chat template shows earlier turns otherwise than they were generated, so each turn is a row of its own"


@dataclass(frozen=True)
class Lesson:
    """A text and the characters of it that are learned, `(start, end)` in order; notes say what was done to the chat."""

    text: str
    spans: tuple[Place, ...]
    notes: tuple[str, ...] = ()


def prompt_of(template: ChatTemplate, messages: Messages, where: str) -> Lesson:
    """Return what a model is given to answer; nothing of it is learned."""
    if is_raw_text(messages):
        return Lesson(str(messages[0]["content"]), ())
    adapted, notes = template.adapt(messages)
    text = template.prompt(adapted, where)
    _check_shown(template, adapted, text, where)
    return Lesson(text, (), notes)


def whole(
    template: ChatTemplate,
    messages: Messages,
    where: str,
    supervise: Supervise | None = "all_turns",
    generation_prompt: bool | None = None,
) -> Lesson:
    """Return the whole chat as one text, every assistant turn learned as that text shows it; with None, none is.

    Raises:
        DataError: the template rejects the chat or leaves out one of its messages; an assistant turn is empty.
    """
    if is_raw_text(messages):
        return _raw(template, messages, supervise)
    adapted, notes = template.adapt(messages)
    if generation_prompt is None:
        generation_prompt = adapted[-1]["role"] != "assistant"
    chosen = _chosen(adapted, supervise, where)
    ended = not generation_prompt and chosen[-1:] == [len(adapted) - 1]
    last = last_turn(template, adapted, where) if ended else None
    text = last.text if last else template.text(adapted, where, generation_prompt=generation_prompt)
    _check_shown(template, adapted, text, where)
    if supervise == "all_tokens":
        return Lesson(text, ((0, len(text)),), notes)
    turns = []
    for index in chosen[:-1] if last else chosen:
        turn, fits = earlier_turn(template, adapted, index, text, where)
        turns.append(turn if fits else turn_as_shown(template, adapted, index, text, where, generation_prompt))
    turns += [last] if last else []
    return _lesson(template, adapted, text, turns, notes, where)


def rows(template: ChatTemplate, messages: Messages, where: str, supervise: Supervise = "all_turns") -> list[Lesson]:
    """Return the rows on which a chat is trained: one, or one a turn where the template shows earlier turns otherwise.

    Raises:
        DataError: as `whole`; and where the chat has nothing to learn.
    """
    if is_raw_text(messages):
        return [_raw(template, messages, supervise)]
    if supervise == "all_tokens":
        return [whole(template, messages, where, supervise)]
    adapted, notes = template.adapt(messages)
    chosen = _chosen(adapted, supervise, where)
    if not chosen:
        raise DataError(f"{where}: the chat has no assistant turn to learn")
    kept = adapted[: chosen[-1] + 1]
    notes += (LEFT_OFF,) if len(kept) < len(adapted) else ()
    last = last_turn(template, kept, where)
    _check_shown(template, kept, last.text, where)
    inside: list[Turn] = []
    apart: list[tuple[int, Turn]] = []
    for index in chosen[:-1]:
        turn, fits = earlier_turn(template, kept, index, last.text, where)
        if fits:
            inside.append(turn)
        else:
            apart.append((index, turn))
    notes += (CUT,) if apart else ()
    cut = [_lesson(template, kept[: index + 1], turn.text, [turn], notes, where) for index, turn in apart]
    return [*cut, _lesson(template, kept, last.text, [*inside, last], notes, where)]


def _raw(template: ChatTemplate, messages: Messages, supervise: Supervise | None) -> Lesson:
    text = str(messages[0]["content"]) + template.end_of_text
    return Lesson(text, () if supervise is None else ((0, len(text)),))


def _chosen(messages: Messages, supervise: Supervise | None, where: str) -> list[int]:
    """The assistant turns that are learned."""
    if supervise is None or supervise == "all_tokens":
        return []
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    turns = turns[-1:] if supervise == "last_turn" else turns
    chosen = [index for index in turns if messages[index].get("weight", 1)]
    for index in chosen:
        message = messages[index]
        if not message["content"].strip() and "tool_calls" not in message and "reasoning_content" not in message:
            raise DataError(f"{where}: message {index}, an assistant turn, is empty once rendered; give it a text")
    return chosen


def _lesson(
    template: ChatTemplate, messages: Messages, text: str, turns: list[Turn], notes: tuple[str, ...], where: str
) -> Lesson:
    """The turns' spans; where the template has generation blocks, only what lies in them."""
    spans = [(turn.start, turn.end) for turn in turns]
    if template.facts.tagged and turns:
        rendered, blocks = template.generated(messages)
        if rendered and text.startswith(rendered):
            spans = _overlaps(spans, blocks)
        if not spans:
            raise DataError(f"{where}: the chat template's generation blocks hold none of the assistant's turns")
    said = [note for turn in turns for note in turn.notes]
    return Lesson(text, tuple(spans), tuple(dict.fromkeys([*notes, *said])))


def _overlaps(spans: list[Place], blocks: list[Place]) -> list[Place]:
    """The parts of the spans that lie in the blocks; parts that touch are one."""
    inside: list[Place] = []
    for start, end in spans:
        for first, last in blocks:
            part = (max(start, first), min(end, last))
            if part[0] >= part[1]:
                continue
            if inside and inside[-1][1] == part[0]:
                part = (inside.pop()[0], part[1])
            inside.append(part)
    return inside


def _check_shown(template: ChatTemplate, messages: Messages, text: str, where: str) -> None:
    """Raise `DataError` where what a message says, or a tool, is not in the rendered chat, or would not be read as text.

    A template may leave out earlier thinking, and what is said beside a tool call.
    """
    for index, message in enumerate(messages):
        for token in template.facts.ends:
            if token in message["content"]:
                raise DataError(
                    f"{where}: message {index} holds {token!r}, which is no text to this model but the end of a turn; "
                    f"take it out of the message, or write it otherwise"
                )
        said = _said(message)
        if said not in text and json.dumps(said, ensure_ascii=False)[1:-1] not in text:
            raise DataError(
                f"{where}: message {index}, of role {message['role']!r}, is not in the rendered chat; leave it out of the "
                f"data, or give a template that shows it with chat_template"
            )
        for tool in message.get("tools", ()):
            if tool["function"]["name"] not in text:
                raise DataError(f"{where}: the chat template writes no tools; give one that does with chat_template")


def _said(message: Any) -> str:
    if message["role"] != "assistant":
        return str(message["content"]).strip()
    return "" if "tool_calls" in message else spoken(message["content"])
