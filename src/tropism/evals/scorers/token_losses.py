"""A number for each token of given responses: batched, right-padded, logits only where they are needed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism.data.batches import Batch, batches, check_embedded, embeddings
from tropism.data.chats import is_raw_text
from tropism.data.render import Rendered, render
from tropism.errors import DataError
from tropism.evals.scorers.base import Sample
from tropism.probes.response_loss import as_measured, head_reads_only
from tropism.site import context_length, input_device

CHUNK = 512
"""Positions whose logits are widened to float32 at a time."""


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; afterwards every module's training flag is as it was."""
    with as_measured(model, frozen=False), torch.no_grad():
        yield


def render_sample(tokenizer: Any, sample: Sample, *, reference: bool = False) -> Rendered | str:
    """The sample's chat with its response as the last turn, or the reason why there is nothing to score.

    A raw text of the data is the response itself, at every token but the first, as it is learned (`reference`).
    """
    if reference and is_raw_text(sample.prompt):
        return render(tokenizer, sample.prompt, where=f"sample {sample.id!r}")
    if not sample.response.strip():
        return "empty response"
    chat = [*(dict(message) for message in sample.prompt), {"role": "assistant", "content": sample.response}]
    try:
        return render(tokenizer, chat, template_kwargs=sample.template_kwargs, where=f"sample {sample.id!r}")
    except DataError as error:
        return str(error)


def last_response(rendered: Rendered) -> range:
    """Token indices of the last response with its end-of-turn token; earlier assistant turns are prompt."""
    return range(rendered.positions["first_response"][0], rendered.positions["response"][-1] + 1)


def logits_at(model: nn.Module, batch: Batch, targets: Sequence[range]) -> Float[Tensor, "n vocabulary"]:
    """Return the logits that predict the tokens `targets[row]` of each row, row after row, in the model's dtype."""
    rows = torch.tensor([row for row, places in enumerate(targets) for _ in places])
    columns = torch.tensor([place - 1 for places in targets for place in places])
    with head_reads_only(model, rows, columns):
        logits: Tensor = model(**batch.inputs, use_cache=False).logits[0]
    return logits


def token_losses(model: nn.Module, batch: Batch, targets: Sequence[range]) -> list[Float[Tensor, "tokens"]]:
    """Per row the loss in nats, float32 on the CPU, of each token in `targets[row]` given those before it."""
    logits = logits_at(model, batch, targets)
    wanted = torch.tensor(
        [chat.input_ids[place] for chat, places in zip(batch.rows, targets, strict=True) for place in places],
        device=logits.device,
    )
    losses = torch.cat(
        [
            nn.functional.cross_entropy(part.float(), labels, reduction="none")
            for part, labels in zip(torch.split(logits, CHUNK), torch.split(wanted, CHUNK), strict=True)
        ]
    )
    return list(torch.split(losses.cpu(), [len(places) for places in targets]))


def token_divergences(
    logits: Float[Tensor, "n vocabulary"], base: Float[Tensor, "n vocabulary"], lengths: Sequence[int]
) -> list[Float[Tensor, "tokens"]]:
    """`Σ p·(log p − log p_base)` of each position in nats, float32 on the CPU, cut into rows of `lengths`.

    A token that the tuned model never says (a logit of −∞, as some models mask the padding of their vocabulary) adds 0.
    """
    parts = []
    for one, other in zip(torch.split(logits, CHUNK), torch.split(base, CHUNK), strict=True):
        log_p, log_q = one.float().log_softmax(-1), other.float().log_softmax(-1)
        said = log_p != -torch.inf
        parts.append(torch.where(said, log_p.exp() * (log_p - log_q), 0).sum(-1))
    return list(torch.split(torch.cat(parts).cpu(), list(lengths)))


Measure = Callable[[Batch, Sequence[range]], list[Tensor]]
"""A batch of chats and, for each, the tokens that count → per chat one number per token."""


def over_responses(
    model: nn.Module,
    tokenizer: Any,
    samples: Sequence[Sample],
    batch_size: int,
    measure: Measure,
    *,
    reference: bool = False,
) -> list[tuple[float, int] | str]:
    """Per sample the mean of `measure` over its response and its token count, or why it has none.

    `reference`: the responses are the data's, so that a raw text is one as a whole.
    """
    limit = context_length(model)
    results: list[tuple[float, int] | str] = []
    fitting: list[tuple[int, Rendered]] = []
    for index, sample in enumerate(samples):
        rendered = render_sample(tokenizer, sample, reference=reference)
        if isinstance(rendered, str):
            results.append(rendered)
            continue
        results.append(f"{len(rendered)} tokens, over the model's {limit} positions")
        if limit is None or len(rendered) <= limit:
            fitting.append((index, rendered))
    check_embedded(embeddings(model), [chat for _, chat in fitting], tokenizer)
    with evaluation(model):
        for batch in batches([chat for _, chat in fitting], batch_size, device=input_device(model)):
            measured = measure(batch, [last_response(chat) for chat in batch.rows])
            for place, row in zip(batch.places, measured, strict=True):
                results[fitting[place][0]] = (float(row.double().mean()), len(row))
    return results


def mean_losses(
    model: nn.Module, tokenizer: Any, samples: Sequence[Sample], batch_size: int, *, reference: bool = False
) -> list[tuple[float, int] | str]:
    """Per sample its response's mean token loss in nats and token count, or the reason for having none."""

    def measure(batch: Batch, targets: Sequence[range]) -> list[Tensor]:
        return token_losses(model, batch, targets)

    return over_responses(model, tokenizer, samples, batch_size, measure, reference=reference)
