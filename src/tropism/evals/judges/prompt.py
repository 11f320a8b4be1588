"""A judge's prompt: a text with `{question}` and `{answer}`, filled in once, and its hash."""

import hashlib
import re
from dataclasses import dataclass

from tropism.errors import SpecError

PLACEHOLDERS = ("question", "answer")
_PLACEHOLDER = re.compile(r"\{(question|answer)\}")


@dataclass(frozen=True)
class JudgePrompt:
    """The text that a judge is given, sent as one user message (after `system`, where there is one).

    `template` must hold `{question}` and `{answer}`; other braces are text. Both are filled in in one pass,
    so an answer that itself contains `{question}` is judged as it stands.

    >>> JudgePrompt("Q: {question} A: {answer}").fill("Why?", "See {question}.")
    'Q: Why? A: See {question}.'
    """

    template: str
    name: str = "judge"
    system: str | None = None

    def __post_init__(self) -> None:
        found = set(_PLACEHOLDER.findall(self.template))
        missing = [f"{{{name}}}" for name in PLACEHOLDERS if name not in found]
        if missing:
            lacking = " and ".join(missing)
            raise SpecError(f"judge prompt {self.name!r} must contain {{question}} and {{answer}}; it lacks {lacking}")

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of what is sent, to be kept with every result."""
        return hashlib.sha256(f"{self.system or ''}\0{self.template}".encode()).hexdigest()[:12]

    def fill(self, question: str, answer: str) -> str:
        """The template with both texts in their places."""
        texts = {"question": question, "answer": answer}
        return _PLACEHOLDER.sub(lambda match: texts[match[1]], self.template)

    def messages(self, question: str, answer: str) -> tuple[dict[str, str], ...]:
        """The chat to send."""
        user = {"role": "user", "content": self.fill(question, answer)}
        return (user,) if self.system is None else ({"role": "system", "content": self.system}, user)
