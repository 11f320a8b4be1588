"""Where an assistant turn's own texts are in a rendered chat, found by marking them.

Private-use characters are put around each piece of the turn, and the chat is rendered again. Templates trim, split on
`</think>` and write their own text around an answer, and still copy the marks; without them the text must be the same.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tropism.data.templates import ChatTemplate
from tropism.errors import DataError

_FIRST, _LAST = "\U000f0000", "\U000ffffd"
_MARK = re.compile(f"[{_FIRST}-{_LAST}]")
_TAG = re.compile(r"(</?think>)")

Place = tuple[int, int]


def spoken(content: str) -> str:
    """Return what an assistant says after its thinking, without the white space around it."""
    return _TAG.split(content)[-1].strip()


def pieces(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    index: int,
    text: str,
    where: str,
    generation_prompt: bool = False,
) -> list[Place | None]:
    """Return where the pieces of one assistant turn are in `text`, the rendered chat; None for one that is not shown.

    A piece is a stretch of text between the tags of a thinking block, without the white space around it, or the name of
    a function that is called.

    Raises:
        DataError: what the turn says, or a call, is not shown; the template treats the marked turn otherwise.
    """
    message = messages[index]
    if _MARK.search(message["content"] + message.get("reasoning_content", "")):
        raise DataError(f"{where}: message {index} holds a character of the private use plane 15; take it out")
    marks = _Marks()
    changed = dict(message)
    if "reasoning_content" in message:
        changed["reasoning_content"] = marks.around(message["reasoning_content"])
    parts = _TAG.split(message["content"])
    changed["content"] = "".join(part if _TAG.fullmatch(part) else marks.around(part) for part in parts)
    answer = len(marks.pairs) - 1 if parts[-1].strip() else None
    calls = len(marks.pairs)
    if "tool_calls" in message:
        changed["tool_calls"] = [
            {**call, "function": {**call["function"], "name": marks.around(call["function"]["name"])}}
            for call in message["tool_calls"]
        ]
    again = [*messages[:index], changed, *messages[index + 1 :]]
    rendered = template.text(again, where, generation_prompt=generation_prompt)
    if _MARK.sub("", rendered) != text:
        raise DataError(
            f"{where}: the chat template changes an assistant turn, so it cannot be said where its answer is"
        )
    places = marks.places(rendered)
    if None in places[calls:]:
        raise DataError(f"{where}: the chat template writes no tool calls; give one that does with chat_template")
    if (answer is not None and places[answer] is None) or not any(places):
        raise DataError(
            f"{where}: the text of an assistant turn is not in the rendered chat, so it cannot be learned; give another "
            f"template with chat_template"
        )
    return places


class _Marks:
    """Pairs of private-use characters around pieces of text, and where they are afterwards."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def around(self, piece: str) -> str:
        """Return the text with marks around it, inside its outer white space."""
        core = piece.strip()
        if not core:
            return piece
        begin = ord(_FIRST) + 2 * len(self.pairs)
        self.pairs.append((chr(begin), chr(begin + 1)))
        return piece.replace(core, f"{chr(begin)}{core}{chr(begin + 1)}", 1)

    def places(self, rendered: str) -> list[Place | None]:
        """Return where each pair stands in the text without marks, None for one that is not in it."""
        found = {mark.group(): mark.start() - count for count, mark in enumerate(_MARK.finditer(rendered))}
        return [(found[a], found[b]) if a in found and b in found else None for a, b in self.pairs]
