"""What a chat is: a list of `{"role", "content"}` messages, checked at the door."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tropism.errors import DataError

ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, str]
Chat = Sequence[Message]


@dataclass(frozen=True)
class Example:
    """One example of a data source: its chat, an id that lasts through to the results, and what is known of it.

    `labels` are facts about the example that code acts on (`route`, `trait`); `target` is what a scorer compares a
    response with (the number that a word problem comes to). Raw text to learn, without turns, is in `text`, and then
    the chat is empty.
    """

    id: str
    chat: tuple[dict[str, str], ...]
    target: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None

    @property
    def prompt(self) -> tuple[dict[str, str], ...]:
        """The messages before the last assistant turn: what the model is given to answer."""
        chat = self.chat
        return chat[:-1] if chat and chat[-1]["role"] == "assistant" else chat

    @property
    def response(self) -> str | None:
        """The last assistant turn, or None where the chat ends in a question."""
        return self.chat[-1]["content"] if self.chat and self.chat[-1]["role"] == "assistant" else None

    def with_chat(self, chat: Sequence[dict[str, str]]) -> "Example":
        """The same example with another chat."""
        return replace(self, chat=tuple(chat))


def check_chat(chat: Any, where: str) -> tuple[dict[str, str], ...]:
    """The chat as a tuple of plain messages, or `DataError` that begins with `where` and says what is wrong."""
    if not isinstance(chat, list | tuple):
        raise DataError(f"{where}: a chat must be a list of messages, found {type(chat).__name__}")
    if not chat:
        raise DataError(f"{where}: a chat must have at least one message, found none")
    checked = []
    for index, message in enumerate(chat):
        if not isinstance(message, Mapping):
            raise DataError(f"{where}: message {index} must be an object with role and content, found {message!r:.60}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"{where}: message {index} has role {role!r}; allowed are {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise DataError(f"{where}: message {index} must have a text as content, found {type(content).__name__}")
        checked.append({"role": role, "content": content})
    if all(message["role"] == "system" for message in checked):
        raise DataError(f"{where}: a chat must have a user or an assistant message, found only system messages")
    return tuple(checked)
