"""What a judge is made of: a backend that answers, a style that reads its answer, and the verdict.

```text
question, answer ─ JudgePrompt ─► Request ─ Backend ─► Reply ─ Style ─► Verdict
                                     └─── Cache ────────┘
```

A reply is kept as it came; a verdict is a pure function of reply and style, so that a better parser needs no
second question. What the judge could not say is unscored, never 0.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    """One question to a judge: the chat, and what of the sampling the style decides."""

    messages: tuple[Mapping[str, str], ...]
    max_tokens: int
    top_logprobs: int = 0
    """How many alternatives of each token to ask for; 0 asks for no log-probabilities."""

    def key(self, identity: Mapping[str, Any]) -> str:
        """SHA-256 over all that determines the reply: the backend's identity, the text, the sampling."""
        whole = {"backend": dict(identity), "request": asdict(self)}
        return hashlib.sha256(json.dumps(whole, sort_keys=True, allow_nan=False).encode()).hexdigest()


@dataclass(frozen=True)
class Token:
    """One generated token and the likeliest tokens in its place, as `(text, log-probability)`."""

    text: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Reply:
    """What came back: the text and, where asked for, its tokens; or `failure`, why nothing did."""

    text: str
    tokens: tuple[Token, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The backend's answer as it came."""
    failure: str | None = None

    @property
    def cut_off(self) -> bool:
        """Whether the endpoint says that the reply reached its token limit."""
        return self._finish_reason() == "length"

    @property
    def finished(self) -> bool | None:
        """Whether the endpoint says that the reply ended before its token limit; None where it does not say."""
        reason = self._finish_reason()
        return None if reason is None else reason != "length"

    def _finish_reason(self) -> str | None:
        choices = self.raw.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        reason = first.get("finish_reason") if isinstance(first, Mapping) else None
        return reason if isinstance(reason, str) else None


@dataclass(frozen=True)
class Verdict:
    """A `value`, or a `label` that the prompt allows in its place (REFUSAL), or `unscored` and why."""

    value: float | None = None
    label: str | None = None
    unscored: str | None = None
    reply: str = ""

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.value, self.label, self.unscored)) != 1:
            raise ValueError(f"a Verdict has exactly one of value, label and unscored, found {self!r}")


class Style(Protocol):
    """How a judge is asked and its reply read."""

    @property
    def max_tokens(self) -> int: ...

    @property
    def top_logprobs(self) -> int: ...

    def read(self, reply: Reply) -> Verdict:
        """The verdict in a reply that is no failure."""
        ...


class Backend(Protocol):
    """Whatever answers: an endpoint, or a model in this process."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON that, with the request, determines a reply; never a secret."""
        ...

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Index and reply of each request, as they come; a failed one yields a `Reply` with `failure`."""
        ...
