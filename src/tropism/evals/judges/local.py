"""A judge that runs in this process: any chat model, greedy, in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tropism.errors import SpecError
from tropism.evals.judges.base import Reply, Request, Token

if TYPE_CHECKING:
    from torch import nn

    from tropism.data.batches import Batch


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A judge in process: `model` answers greedily, `batch_size` requests at a time.

    Its identity is a hash of its weights, adapters and attached guards, and of its chat template, so that a
    cache never gives one model's verdict for another's. A request longer than the model's context is
    unscored. The single-token style needs a tokenizer that writes each of 0 to 100 as one token; `SpecError`
    where not.
    """

    model: "nn.Module" = field(repr=False)
    tokenizer: Any = field(repr=False)
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SpecError(f"LocalModel.batch_size must be at least 1, found {self.batch_size!r}")

    @property
    def identity(self) -> dict[str, Any]:
        """The model's name and fingerprint, and its chat template."""
        from tropism.probes.fingerprint import model_fingerprint

        return {
            "kind": "local",
            "model": str(self.tokenizer.name_or_path),
            "fingerprint": model_fingerprint(self.model),
            "template": self.tokenizer.chat_template,
        }

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Index and reply of each request, in batches of like length."""
        from tropism.data.batches import batches
        from tropism.data.render import render_prompt
        from tropism.site import context_length, input_device

        if any(request.top_logprobs for request in requests):
            self._check_numbers()
        rendered = [render_prompt(self.tokenizer, request.messages, where="judge prompt") for request in requests]
        limit = context_length(self.model)
        fitting = []
        for index, chat in enumerate(rendered):
            needed = len(chat) + requests[index].max_tokens
            if limit is not None and needed > limit:
                yield index, Reply("", failure=f"{needed} tokens, over the judge's {limit} positions")
            else:
                fitting.append(index)
        chats = [rendered[index] for index in fitting]
        for batch in batches(chats, self.batch_size, device=input_device(self.model)):
            group = [fitting[place] for place in batch.places]
            replies = self._batch([requests[index] for index in group], batch)
            yield from zip(group, replies, strict=True)

    def _batch(self, requests: Sequence[Request], batch: "Batch") -> list[Reply]:
        alternatives = max(request.top_logprobs for request in requests)
        if alternatives:
            return self._first_tokens(batch, alternatives)
        from tropism.data.generation import GenerateOptions, continue_rendered

        longest = max(request.max_tokens for request in requests)
        options = GenerateOptions(max_new_tokens=longest, batch_size=self.batch_size)
        texts = continue_rendered(self.model, self.tokenizer, batch.rows, options)
        return [Reply(text, raw={"text": text}) for text in texts]

    def _first_tokens(self, batch: "Batch", alternatives: int) -> list[Reply]:
        """The likeliest first tokens of each answer, from one forward pass: nothing need be generated."""
        from tropism.evals.scorers.token_losses import evaluation, logits_at

        with evaluation(self.model):
            logits = logits_at(self.model, batch, [range(len(row), len(row) + 1) for row in batch.rows])
        replies = []
        for values, places in zip(*logits.float().log_softmax(-1).topk(alternatives), strict=True):
            words = (self.tokenizer.decode([place]) for place in places.tolist())
            top = tuple(zip(words, values.tolist(), strict=True))
            replies.append(Reply(top[0][0], (Token(top[0][0], top),), {"top": [list(pair) for pair in top]}))
        return replies

    def _check_numbers(self) -> None:
        for number in range(101):
            pieces = self.tokenizer(str(number), add_special_tokens=False)["input_ids"]
            if len(pieces) != 1:
                raise SpecError(
                    f"the single-token style needs a tokenizer that writes 0 to 100 as one token each; "
                    f"that of {self.tokenizer.name_or_path!r} writes {number} as {len(pieces)}: use FreeText"
                )
