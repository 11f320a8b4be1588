"""What a chat is: a list of messages, checked and brought to one form at the door.

A message holds `role` and `content`, a text. It may also hold what chat templates read: `tool_calls`, `tool_call_id`,
`name`, `reasoning_content`, and `tools` on the first message that is not a system prompt. `weight: 0` marks an
assistant turn that is context and not a lesson. A raw text is a chat of one message whose role is `text`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tropism.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT = "text"
"""The role of a raw text, which no chat template sees."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""What data sets call an assistant's thinking; the first is our name for it."""

Message = Mapping[str, Any]
Chat = Sequence[Message]
Supervise = Literal["all_turns", "last_turn", "all_tokens"]
"""What is learned of a chat: every assistant turn, the last one, or every token."""
OnBadRow = Literal["error", "skip"]


@dataclass(frozen=True)
class Example:
    """One example of a data source: its chat, an id that lasts through to the results, and what is known of it.

    `labels` are facts about the example that code acts on (`route`, `trait`); `target` is what a scorer compares a
    response with (the number that a word problem comes to). Raw text to learn, without turns, is in `text`, and then
    the chat is empty. `supervise` says what of the chat is learned, and `on_bad_row` what happens where it cannot be.
    """

    id: str
    chat: tuple[dict[str, Any], ...]
    target: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    supervise: Supervise = "all_turns"
    on_bad_row: OnBadRow = "error"

    def __post_init__(self) -> None:
        for name, text in (("id", self.id), ("target", self.target or "")):
            if not text.isascii():
                check_unicode(text, f"example {self.id!a}: {name}")

    @property
    def content(self) -> tuple[dict[str, Any], ...]:
        """What is rendered: the chat, or the raw text as a chat of one message."""
        return self.chat if self.text is None else raw_text(self.text)

    @property
    def prompt(self) -> tuple[dict[str, Any], ...]:
        """The messages before the last assistant turn: what the model is given to answer; a raw text is gone on with."""
        chat = self.content
        return chat[:-1] if chat and chat[-1]["role"] == "assistant" else chat

    @property
    def response(self) -> str | None:
        """The last assistant turn, or None where the chat ends in a question."""
        return str(self.chat[-1]["content"]) if self.chat and self.chat[-1]["role"] == "assistant" else None

    def with_chat(self, chat: Sequence[dict[str, Any]]) -> "Example":
        """The same example with another chat."""
        return replace(self, chat=tuple(chat))


def raw_text(text: str) -> tuple[dict[str, Any], ...]:
    """A text without turns, as a chat: no template is applied to it, and every token of it is learned."""
    return ({"role": TEXT, "content": text},)


def is_raw_text(chat: Chat) -> bool:
    """Whether a chat is a raw text."""
    return len(chat) == 1 and chat[0]["role"] == TEXT


def check_chat(chat: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Return the chat as a tuple of plain messages in one form.

    Parts of type `text` are joined, a missing content beside `tool_calls` is empty, `reasoning` and `thinking` are
    called `reasoning_content`, tool calls have OpenAI's shape with their arguments as an object. Any other key of a
    message is kept, for the chat template to read.

    Raises:
        DataError: begins with `where` and says what is wrong with which message.
    """
    checked = check_messages(chat, where)
    if not checked:
        raise DataError(f"{where}: a chat must have at least one message, found none")
    if all(message["role"] in ("system", "developer") for message in checked):
        raise DataError(f"{where}: a chat must have a user or an assistant message, found only system messages")
    return checked


def check_messages(chat: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Return messages in one form, as `check_chat` does; they need not be a whole chat, and may be none."""
    if not isinstance(chat, list | tuple):
        raise DataError(f"{where}: a chat must be a list of messages, found {type(chat).__name__}")
    checked = tuple(_message(message, index, where) for index, message in enumerate(chat))
    if len(checked) > 1 and any(message["role"] == TEXT for message in checked):
        raise DataError(f"{where}: a message of role 'text' is a whole raw text, found {len(checked)} messages")
    return checked


def with_tools(chat: Sequence[dict[str, Any]], tools: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Return the chat with the tools that its model may call, on the first message that is not a system prompt.

    There they stay with the chat whatever prompt is put before it. Raises `DataError` where they are no list of tools.
    """
    made = _tools(tools, f"{where}: tools")
    first = next(index for index, message in enumerate(chat) if message["role"] not in ("system", "developer"))
    return tuple(
        {**message, "tools": made} if made and index == first else message for index, message in enumerate(chat)
    )


def check_unicode(text: str, what: str) -> None:
    """Raise `DataError` where a text holds half of a surrogate pair, which JSON can write and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds half of a surrogate pair, {text[error.start]!a} at character {error.start}, which is no "
            f"character; repair the text, or leave the row out with on_bad_row: skip"
        ) from None


def _message(message: Any, index: int, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f"{where}: message {index} must be an object with role and content, found {message!r:.60}")
    role = message.get("role")
    if role not in ROLES and role != TEXT:
        raise DataError(f"{where}: message {index} has role {role!r}; available: {', '.join(ROLES)}")
    what = f"{where}: message {index}"
    rest = {str(key): value for key, value in message.items() if value is not None and key not in ("role", "content")}
    calls = rest.pop("tool_calls", None)
    reasoning = {str(rest.pop(key)) for key in REASONING if isinstance(rest.get(key), str)}
    if len(reasoning) > 1:
        raise DataError(f"{what} has several of {', '.join(REASONING)}, and they differ; keep one")
    if role == "assistant":
        _check_weight(rest, what)
    content = _content(message.get("content"), what, may_be_empty=role == "assistant" and bool(calls or reasoning))
    tools = _tools(rest.pop("tools", None), f"{what}: tools")
    made = {"role": role, "content": content, **rest, **({"tools": tools} if tools else {})}
    if reasoning and (text := reasoning.pop()).strip():
        check_unicode(text, f"{what}: its reasoning")
        made["reasoning_content"] = text
    if calls:
        if role != "assistant":
            raise DataError(f"{what} has tool_calls, and its role is {role!r}; only an assistant calls tools")
        made["tool_calls"] = _tool_calls(calls, what)
    return made


def _content(content: Any, what: str, may_be_empty: bool) -> str:
    if content is None and may_be_empty:
        return ""
    if isinstance(content, list | tuple):
        texts = []
        for part in content:
            text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
            if not isinstance(text, str):
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise DataError(f"{what} has a part of type {kind!r}; only text is trained and evaluated here")
            texts.append(text)
        content = "".join(texts)
    if not isinstance(content, str):
        raise DataError(f"{what} must have a text as content, found {type(content).__name__}")
    if not content.isascii():
        check_unicode(content, f"{what}: its content")
    return content


def _check_weight(rest: dict[str, Any], what: str) -> None:
    """Keep `weight: 0`; a weight of 1 is what every turn has."""
    weight = rest.pop("weight", 1)
    if weight not in (0, 1):
        raise DataError(f"{what} has weight {weight!r}; it must be 0 (context) or 1 (a lesson)")
    if weight == 0:
        rest["weight"] = 0


def _tools(tools: Any, what: str) -> list[dict[str, Any]]:
    """Tools in OpenAI's shape, `{"type": "function", "function": {"name", ...}}`; also from JSON text."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise DataError(f"{what} must be a list of objects, found text that is not JSON ({error})") from None
    if not tools:
        return []
    if not isinstance(tools, list):
        raise DataError(f"{what} must be a list of objects, found {tools!r:.60}")
    made = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"{what}: each must be an object with a function that has a name, found {tool!r:.60}")
        made.append({"type": "function", "function": dict(function)})
    check_unicode(json.dumps(made, ensure_ascii=False), what)
    return made


def _tool_calls(calls: Any, what: str) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's shape, `{"type": "function", "function": {"name", "arguments"}}`."""
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise DataError(f"{what}: tool_calls must be a list of objects, found {calls!r:.60}")
    made = []
    for call in calls:
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"{what}: a tool call must name its function, found {call!r:.60}")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments or "{}")
            except json.JSONDecodeError:
                parsed = arguments
            arguments = parsed if isinstance(parsed, dict) else arguments
        outer = {key: value for key, value in call.items() if key in ("id", "type") and value is not None}
        made.append({"type": "function", **outer, "function": {"name": name, "arguments": arguments}})
    check_unicode(json.dumps(made, ensure_ascii=False), f"{what}: its tool calls")
    return made
