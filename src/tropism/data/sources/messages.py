"""The chats of the field, in each way that data sets write them, as lists of `{"role", "content"}` messages."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tropism.errors import DataError
from tropism.unique_keys import KeyTwice, from_json

ROLE_KEYS = ("role", "from", "speaker")
TEXT_KEYS = ("content", "value", "text")
ROLE_NAMES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}
"""What other data sets call a role → our name of it; any other role stays as it is and is checked with the chat."""

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \t]?")


def messages_of(value: Any, where: str) -> list[dict[str, Any]]:
    """Read a chat: a list of messages, in ShareGPT's or OpenAI's keys, or the same list as a JSON text.

    Raises `DataError` that begins with `where`. Roles and contents are checked later, with the chat as a whole.
    """
    held = parsed(value, where) if isinstance(value, str) else value
    if not isinstance(held, Sequence) or isinstance(held, str):
        raise DataError(f"{where}: a chat must be a list of messages, found {type(held).__name__}")
    if held and all(isinstance(turn, str) for turn in held):
        if len(held) > 1:
            raise DataError(
                f"{where}: a list of {len(held)} texts does not say who speaks; write each turn as "
                f"{{'role': 'user' or 'assistant', 'content': text}}"
            )
        return [{"role": "user", "content": held[0]}]
    return [_message(turn, index, where) for index, turn in enumerate(held)]


def side(value: Any, role: str, where: str) -> list[dict[str, Any]]:
    """Read one side of a pair: a text said by `role`, or a list of messages (or its JSON text)."""
    if isinstance(value, str):
        return messages_of(value, where) if is_written_chat(value) else [{"role": role, "content": value}]
    if isinstance(value, Sequence):
        return messages_of(value, where)
    raise DataError(f"{where}: a prompt or response must be a text or a list of messages, found {type(value).__name__}")


def is_written_chat(text: str) -> bool:
    """Whether a text is a chat as JSON: a list of objects with a role and a content."""
    if not re.match(r"\s*\[\s*\{", text):
        return False
    try:
        held = parsed(text, "")
    except DataError:
        return False
    return isinstance(held, list) and all(isinstance(turn, Mapping) and _key(turn, ROLE_KEYS) for turn in held)


def parsed(text: str, where: str) -> Any:
    """Read a value written as JSON, or as Python prints it (a CSV that pandas wrote); nothing in it is executed."""
    try:
        return from_json(text)
    except KeyTwice as error:
        raise DataError(f"{where}: {error}") from None
    except (json.JSONDecodeError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise DataError(
            f"{where}: a chat must be a list of messages, or its JSON, found the text {text!r:.60}"
        ) from None


def transcript(text: str) -> list[dict[str, Any]] | None:
    r"""Read a chat written as `\n\nHuman: …\n\nAssistant: …` (Anthropic's HH-RLHF); None for any other text."""
    marks = list(_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        {"role": "user" if mark[1] == "Human" else "assistant", "content": text[mark.end() : end]}
        for mark, end in zip(marks, ends, strict=True)
    ]


def _message(turn: Any, index: int, where: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: message {index} must be an object with role and content, found {turn!r:.60}")
    role_key, text_key = _key(turn, ROLE_KEYS), _key(turn, TEXT_KEYS)
    if role_key is None:
        raise DataError(
            f"{where}: message {index} must have a role ({' or '.join(ROLE_KEYS)}), found the keys "
            f"{', '.join(map(str, turn)) or 'none'}"
        )
    role = turn[role_key]
    # A column of structs has every key in every row, so a key without a value is one that was not written.
    rest = {key: value for key, value in turn.items() if key not in (role_key, text_key) and value is not None}
    content = turn.get(text_key) if text_key is not None else None
    return {"role": ROLE_NAMES.get(role, role) if isinstance(role, str) else role, "content": content, **rest}


def _key(turn: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of `names` that the message has, with a value where several are there."""
    held = [name for name in names if name in turn]
    return next((name for name in held if turn[name] is not None), held[0] if held else None)
