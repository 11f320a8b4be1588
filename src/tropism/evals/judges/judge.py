"""`Judge`: a prompt, a style and a backend together, with the cache between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from tropism.errors import UsageError
from tropism.evals.judges.base import Backend, Reply, Request, Style, Verdict
from tropism.evals.judges.cache import ReplyCache
from tropism.evals.judges.prompt import JudgePrompt

IN_VAIN = 16
"""So many replies without the log-probabilities that a style reads, and none with them: the rest would be paid for in vain."""


@dataclass(frozen=True)
class Judge:
    """Scores answers by asking a language model.

    Example:
        judge = Judge(JudgePrompt(text, name="aligned"), SingleToken(), Endpoint("gpt-4o-2024-08-06"))
        with ReplyCache("judge.sqlite") as cache:
            verdicts = judge.judge([(question, answer)], cache)
    """

    prompt: JudgePrompt
    style: Style
    backend: Backend

    def judge(self, pairs: Sequence[tuple[str, str]], cache: ReplyCache | None = None) -> list[Verdict]:
        """One verdict for each (question, answer), in order.

        Equal pairs are asked once. Replies in the cache are not asked again; new ones are kept as they come;
        what failed is unscored, and asked again by the next call. Raises `UsageError` where no reply can come
        at all: the endpoint refuses the key, does not know the model, or cannot be reached; and where the style reads
        log-probabilities and none of the first replies has any.
        """
        requests = [
            Request(self.prompt.messages(question, answer), self.style.max_tokens, self.style.top_logprobs)
            for question, answer in pairs
        ]
        identity = self.backend.identity
        keys = [request.key(identity) for request in requests]
        replies: dict[str, Reply] = {}
        missing: dict[str, Request] = {}
        for key, request in zip(keys, requests, strict=True):
            if key in replies or key in missing:
                continue
            known = None if cache is None else cache.get(key)
            if known is None:
                missing[key] = request
            else:
                replies[key] = known
        asked = list(missing)
        in_vain = 0
        for index, reply in self.backend.answers([missing[key] for key in asked]):
            key = asked[index]
            replies[key] = reply
            if cache is not None and reply.failure is None:
                cache.put(key, missing[key], reply)
            if self.style.top_logprobs and reply.failure is None:
                in_vain = -1 if reply.tokens or in_vain < 0 else in_vain + 1
                if in_vain == IN_VAIN:
                    raise UsageError(
                        f"the judge gives no log-probabilities, in none of its first {IN_VAIN} replies; take the style "
                        "free_text, which reads what it writes, or an endpoint that gives them"
                    )
        return [self._verdict(replies[key]) for key in keys]

    def _verdict(self, reply: Reply) -> Verdict:
        return Verdict(unscored=reply.failure) if reply.failure is not None else self.style.read(reply)
