"""Where the lesson of one assistant turn begins and ends.

A lesson is what the model must write at inference: it begins where the generation prompt ends, and goes up to and with
what ends the turn. It is read off the chat cut after that turn, since that is what a model is asked to continue.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tropism.data.marks import Place, pieces
from tropism.data.templates import NO_STOP, ChatTemplate, stop_in
from tropism.errors import DataError

OTHER_PROMPT = "generation is asked with another prompt than a trained answer follows; template_kwargs may mend it"
COMPOSED = "the chat template leaves out thinking that its generation prompt begins, so the answer follows that prompt"
OTHERWISE = "the chat template shows earlier turns otherwise than they were generated"

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Turn:
    """A text and the characters of it that are one turn's lesson."""

    text: str
    start: int
    end: int
    notes: tuple[str, ...] = ()


def last_turn(template: ChatTemplate, messages: Messages, where: str) -> Turn:
    """Return the lesson of the last message, an assistant turn, in the chat that ends with it."""
    facts, message = template.facts, messages[-1]
    if not messages[:-1] and not template.accepts(messages):
        return _joined(template, template.prompt([], where), (facts.lead or "") + message["content"])
    text = template.text(messages, where)
    prompt = template.prompt(messages[:-1], where)
    if facts.lead is not None and facts.tail is not None and _is_plain(message):
        for answer in (message["content"], message["content"].strip()):
            if text == prompt + facts.lead + answer + facts.tail:
                return _joined(template, prompt, facts.lead + answer)
    places = pieces(template, messages, len(messages) - 1, text, where)
    if None in places:
        return _with_its_thinking(template, message, prompt, where)
    first, after = _around(places)
    start = len(prompt)
    notes: tuple[str, ...] = ()
    if not text.startswith(prompt) or start > first:
        start, notes = _with_space(template, messages, text, first, where), (OTHER_PROMPT,)
    if "tool_calls" in message:
        return Turn(text, start, len(text.rstrip()), notes)
    stop = stop_in(text[after:])
    return Turn(text, start, after + len(stop), notes + _no_stop(stop))


def earlier_turn(template: ChatTemplate, messages: Messages, index: int, text: str, where: str) -> tuple[Turn, bool]:
    """Return the lesson of an earlier turn, and whether `text`, the longer chat, shows it as the chat cut after it does."""
    facts, message = template.facts, messages[index]
    if index > 0 and facts.lead is not None and facts.stop and _is_plain(message):
        prompt = template.prompt(messages[:index], where)
        for answer in (message["content"], message["content"].strip()):
            shown = prompt + facts.lead + answer + facts.stop
            if text.startswith(shown):
                return Turn(text, len(prompt), len(shown)), True
    own = last_turn(template, messages[: index + 1], where)
    return own, text.startswith(own.text[: own.end])


def turn_as_shown(
    template: ChatTemplate, messages: Messages, index: int, text: str, where: str, generation_prompt: bool
) -> Turn:
    """Return an earlier turn that `text` shows otherwise than inference would: its answer and what ends it there."""
    first, after = _around(pieces(template, messages, index, text, where, generation_prompt))
    prompt = template.prompt(messages[:index], where)
    start = len(prompt) if text.startswith(prompt) and len(prompt) <= first else first
    stop = template.facts.stop
    if not stop or not text.startswith(stop, after):
        # Another end than the last turn's, right before the next turn's header (gpt-oss): its first mark-up.
        found = re.match(r"\s*<[^<>\s]*>", text[after:])
        stop = found.group() if found else ""
    return Turn(text, start, after + len(stop), (OTHERWISE, *_no_stop(stop)))


def _joined(template: ChatTemplate, prompt: str, answer: str, *notes: str) -> Turn:
    """A prompt, an answer and what the template puts after one."""
    facts = template.facts
    text = prompt + answer + (facts.tail or "")
    return Turn(text, len(prompt), len(prompt + answer + facts.stop), notes + _no_stop(facts.stop))


def _with_its_thinking(template: ChatTemplate, message: Mapping[str, Any], prompt: str, where: str) -> Turn:
    """The prompt and the turn's own text, where the template drops thinking that its generation prompt begins."""
    content = message["content"]
    if "reasoning_content" in message:
        content = f"<think>\n{message['reasoning_content'].strip()}\n</think>\n\n{content}"
    if not prompt.rstrip().endswith("<think>") or not content.lstrip().startswith("<think>"):
        raise DataError(
            f"{where}: the chat template leaves out the thinking of an assistant turn; take it out of the data, write it "
            f"into the content as <think>...</think>, or give a template that shows it with chat_template"
        )
    answer = content.lstrip().removeprefix("<think>")
    return _joined(template, prompt, answer.removeprefix("\n") if prompt.endswith("\n") else answer, COMPOSED)


def _with_space(template: ChatTemplate, messages: Messages, text: str, first: int, where: str) -> int:
    """Where the last message's own text begins, with the white space that it begins with unless the template trims it."""
    content = messages[-1]["content"]
    space = content[: len(content) - len(content.lstrip())]
    if not space or not text.endswith(space, 0, first):
        return first
    trimmed = template.text([*messages[:-1], {**messages[-1], "content": content.lstrip()}], where)
    return first if trimmed == text else first - len(space)


def _is_plain(message: Mapping[str, Any]) -> bool:
    return "tool_calls" not in message and "reasoning_content" not in message


def _around(places: Sequence[Place | None]) -> Place:
    """From the first shown piece to the end of the last."""
    shown = [place for place in places if place is not None]
    return min(start for start, _ in shown), max(end for _, end in shown)


def _no_stop(stop: str) -> tuple[str, ...]:
    return () if stop else (NO_STOP,)
