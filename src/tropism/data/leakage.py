"""Prompts that an evaluation set shares with the training data: what a model was taught is no measure of what it learned.

Two prompts are the same where their messages are, system prompts aside, after normalising: Unicode NFKC, case, white
space, and punctuation at the ends. A training chat of several turns teaches an answer to each of its beginnings.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tropism.data.chats import Example, Message

Key = bytes
KEY_BYTES = 16
_INSTRUCTIONS = ("system", "developer")


def normalised(text: str) -> str:
    """Return a text as prompts are compared.

    >>> normalised("  What is\\n２+2?! "), normalised("“What is 2+2”")
    ('what is 2+2', 'what is 2+2')
    """
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    start, end = 0, len(words)
    while start < end and _at_an_end(words[start]):
        start += 1
    while end > start and _at_an_end(words[end - 1]):
        end -= 1
    # Of a text that is punctuation alone nothing would be left, and all such texts would be one.
    return words[start:end] or words


def prompt_key(example: Example) -> Key:
    """Return what identifies the prompt of an example; of a chat without one, and of a raw text, the whole of it."""
    return _key(_turns(example.prompt) or _turns(example.content))


def taught_keys(example: Example) -> Iterator[Key]:
    """Yield the keys of all prompts to which training on an example teaches an answer."""
    turns = _turns(example.content)
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("weight", 1)]
    if example.supervise == "last_turn":
        answers = answers[-1:]
    beginnings = [turns[:index] for index in answers if index]
    for beginning in beginnings or [turns]:
        yield _key(beginning)


class Leakage:
    """Counts, for each evaluation set, the rows whose prompt is also trained on.

    Holds one key per evaluation row and none of the training rows, of which there may be many.
    """

    def __init__(self, names: Iterable[str], examples: Callable[[str], Iterable[Example]]) -> None:
        self._keys: dict[str, list[Key]] = {name: [prompt_key(one) for one in examples(name)] for name in names}
        self._asked = {key for keys in self._keys.values() for key in keys}
        self._shared: set[Key] = set()

    def train_on(self, examples: Iterable[Example]) -> None:
        """Take note of training examples."""
        for example in examples:
            self.train_on_keys(taught_keys(example))

    def train_on_keys(self, keys: Iterable[Key]) -> None:
        """Take note of what training examples teach, by their `taught_keys`."""
        self._shared.update(key for key in keys if key in self._asked)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return `{set: {"shared": rows, "of": rows}}`."""
        return {
            name: {"shared": sum(key in self._shared for key in keys), "of": len(keys)}
            for name, keys in self._keys.items()
        }


def sentences(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return one sentence per evaluation set that shares rows with the training data."""
    return [
        f"leakage: {found['shared']} of {found['of']} prompts of the evaluation set {name!r} are also trained on"
        for name, found in counts.items()
        if found["shared"]
    ]


def _at_an_end(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")


def _turns(chat: Iterable[Message]) -> list[Message]:
    return [message for message in chat if message["role"] not in _INSTRUCTIONS]


def _key(turns: Iterable[Mapping[str, Any]]) -> Key:
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for turn in turns:
        digest.update(f"{turn['role']}\x1f{normalised(turn['content'])}\x1e".encode())
    return digest.digest()
