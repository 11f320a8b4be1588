"""A judge behind an OpenAI-compatible endpoint: concurrency, bounded retries with a budget, and no key
anywhere.

Retries are ours (tenacity), not the client's, because an empty or cut-off reply is retried too, and because
all requests share one budget: an endpoint that is going down is not asked a thousand times.
"""

import itertools
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tropism.errors import SpecError, UsageError
from tropism.evals.judges.base import Reply, Request, Token
from tropism.optional import require

OPENAI = "https://api.openai.com/v1"
_PACKAGES, _PURPOSE = ("openai", "tenacity"), "a judge behind an endpoint"


class EndpointRefused(UsageError):
    """The endpoint answered that it will never answer: a wrong key, an unknown model, a wrong path."""


@dataclass(frozen=True)
class Retries:
    """When to ask again: up to `attempts` times a request and `budget` times in all, waiting at most
    `longest_wait` s.

    Waits are drawn from `[0, min(longest_wait, first_wait·2^n)]`, so that parallel requests do not come back
    together. A `Retry-After` is honoured; one over `longest_wait` ends the request instead.
    """

    attempts: int = 5
    budget: int = 100
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.budget < 0 or self.first_wait < 0 or self.longest_wait < self.first_wait:
            raise SpecError(f"Retries needs attempts ≥ 1, budget ≥ 0 and 0 ≤ first_wait ≤ longest_wait, found {self!r}")


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible chat endpoint (OpenAI, vLLM, `transformers serve`, …).

    The key is read from the environment variable `api_key_env` when requests are sent, and is kept nowhere;
    an endpoint other than OpenAI's may do without. `extra_body` is merged into each request (`{"seed": 0}`,
    say): no secrets there, since it is part of the cache's key and of results.

    Raises `SpecError` for a URL with a password or a query in it (they would end in files), `UsageError`
    where OpenAI's key is not set, `MissingExtra` without the extra `judge`.
    """

    model: str
    base_url: str = OPENAI
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    concurrency: int = 8
    timeout: float = 60.0
    retries: Retries = Retries()
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SpecError("Endpoint.base_url must be http://HOST[:PORT]/PATH, found something else")
        if parts.username or parts.password or parts.query:
            raise SpecError(
                f"Endpoint.base_url must not hold a user, a password or a query, since results name it (host "
                f"{parts.hostname}); put the key into the environment variable {self.api_key_env}"
            )
        if self.concurrency < 1 or self.timeout <= 0:
            raise SpecError(
                f"Endpoint needs concurrency ≥ 1 and timeout > 0, found {self.concurrency} and {self.timeout}"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """URL, model, temperature and extra body: with the request, what determines a reply."""
        return {
            "kind": "endpoint",
            "base_url": self.base_url.rstrip("/"),
            "model": self.model,
            "temperature": self.temperature,
            "extra_body": dict(self.extra_body),
        }

    def check_ready(self) -> None:
        """Raise `UsageError` where OpenAI's key is not set, `MissingExtra` without the extra `judge`; asks nobody."""
        for name in _PACKAGES:
            require(name, extra="judge", purpose=_PURPOSE)
        if not os.environ.get(self.api_key_env) and self.base_url.rstrip("/") == OPENAI:
            raise UsageError(
                f"the judge {self.model!r} at OpenAI needs a key; set the environment variable {self.api_key_env}"
            )

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Send the requests, `concurrency` at a time; yields index and reply as they come.

        What fails after its retries, or after the budget is spent, yields a `Reply` with `failure`. Raises
        `EndpointRefused` at the first refusal that holds for all (401, 403, 404), and `UsageError` where not
        one request got through to the endpoint.
        """
        if not requests:
            return
        session = _Session(self)
        todo = iter(enumerate(requests))
        running: dict[Future[Reply], int] = {}
        with closing(session.client), ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge") as pool:
            try:
                while True:
                    for index, request in itertools.islice(todo, 2 * self.concurrency - len(running)):
                        running[pool.submit(session.ask, request)] = index
                    if not running:
                        return
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        index, reply = running.pop(future), future.result()
                        if reply.failure is not None and not session.reached:
                            raise UsageError(
                                f"the judge's endpoint {self.base_url} cannot be reached ({reply.failure}); "
                                f"start it or mend base_url, and run the same command again"
                            )
                        yield index, reply
            finally:
                session.stop.set()
                for future in running:
                    future.cancel()


class _Session:
    """The client, the retry budget and whether the endpoint answers: shared by the threads of a call."""

    def __init__(self, endpoint: Endpoint) -> None:
        endpoint.check_ready()
        self.openai, self.tenacity = (require(name, extra="judge", purpose=_PURPOSE) for name in _PACKAGES)
        self.endpoint = endpoint
        # The key is never a local variable: tracebacks that show locals would show it.
        self.client = self.openai.OpenAI(
            api_key=os.environ.get(endpoint.api_key_env) or "none",
            base_url=endpoint.base_url,
            timeout=endpoint.timeout,
            max_retries=0,
        )
        self.stop = threading.Event()
        self.reached = False
        self._budget = endpoint.retries.budget
        self._spent = threading.Event()
        self._lock = threading.Lock()

    def ask(self, request: Request) -> Reply:
        """The reply to one request, after as many attempts as it is granted."""
        retries = self.endpoint.retries
        if self._spent.is_set():
            return Reply("", failure=f"not asked: the retry budget of {retries.budget} is spent")
        attempts = self.tenacity.Retrying(
            retry=self.tenacity.retry_if_exception_type(_Again),
            stop=self.tenacity.stop_after_attempt(retries.attempts) | self._refuse,
            wait=self._wait,
            sleep=self.stop.wait,
            reraise=True,
        )
        try:
            reply: Reply = attempts(self._once, request)
        except _Again as again:
            return Reply("", failure=again.reason)
        return reply

    def _refuse(self, state: Any) -> bool:
        """Stop retrying: told to, asked to wait too long, or the budget that all requests share is spent."""
        error = state.outcome.exception()
        if self.stop.is_set() or (error.retry_after or 0) > self.endpoint.retries.longest_wait:
            return True
        if state.attempt_number >= self.endpoint.retries.attempts:
            return True
        with self._lock:
            if self._budget == 0:
                self._spent.set()
                return True
            self._budget -= 1
        return False

    def _wait(self, state: Any) -> float:
        error = state.outcome.exception()
        retries = self.endpoint.retries
        jitter = self.tenacity.wait_random_exponential(multiplier=retries.first_wait, max=retries.longest_wait)(state)
        return float(max(error.retry_after or 0.0, jitter))

    def _once(self, request: Request) -> Reply:
        openai = self.openai
        options: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": self.endpoint.temperature}
        if request.top_logprobs:
            options |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        try:
            response = self.client.chat.completions.with_raw_response.create(
                model=self.endpoint.model,
                messages=[dict(message) for message in request.messages],
                extra_body=dict(self.endpoint.extra_body),
                **options,
            )
            self.reached = True
            raw = json.loads(self._clean(response.http_response.text))
        except openai.APIStatusError as error:
            self.reached = True
            raise self._status(error) from None
        except openai.APITimeoutError:
            raise _Again(f"no answer within {self.endpoint.timeout:g} s") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            raise _Again(self._clean(f"no connection: {cause or error}")) from None
        except ValueError:
            raise _Again("the reply is no JSON (cut short?)") from None
        return _reply(raw)

    def _status(self, error: Any) -> Exception:
        said = self._clean(str(error.message))[:200]
        reason = f"HTTP {error.status_code}: {said}"
        if error.status_code in (401, 403, 404):
            return EndpointRefused(
                f"the judge's endpoint {self.endpoint.base_url} refuses {self.endpoint.model!r}: {reason}; "
                f"check the key in {self.endpoint.api_key_env}, the model's name and the URL"
            )
        if error.status_code in (408, 409, 429) or error.status_code >= 500:
            return _Again(reason, _seconds(error.response.headers.get("retry-after")))
        return _Again(reason, float("inf"))

    def _clean(self, text: str) -> str:
        """A server's words without the key, which some echo."""
        name = self.endpoint.api_key_env
        return text.replace(os.environ[name], "[redacted]") if os.environ.get(name) else text


class _Again(Exception):
    """A failure that another attempt may mend, after `retry_after` seconds if given (inf: never)."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.retry_after = reason, retry_after


def _seconds(header: str | None) -> float | None:
    """Seconds of a `Retry-After`, or None for none, a date or nonsense (then the usual wait applies)."""
    if header is None or not re.fullmatch(r"\s*[0-9]{1,9}(\.[0-9]{1,3})?\s*", header):
        return None
    return float(header)


def _token(listed: Any) -> Token:
    top = ((str(one["token"]), float(one["logprob"])) for one in listed["top_logprobs"])
    return Token(str(listed["token"]), tuple(top))


def _reply(raw: Any) -> Reply:
    """The reply in a chat completion; raises `_Again` where there is none in it."""
    try:
        choice = raw["choices"][0]
        text = choice["message"]["content"]
        listed = (choice.get("logprobs") or {}).get("content") or []
        tokens = tuple(_token(token) for token in listed)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise _Again("the reply is no chat completion") from None
    if not isinstance(text, str) or not text.strip():
        raise _Again("the reply is empty")
    return Reply(text, tokens, raw)
