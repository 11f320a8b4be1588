"""Every chat's own mean response loss, with logits computed only where a response is predicted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism import hooks
from tropism.activations.mode import evaluation_mode
from tropism.data.batches import Batch, check_embedded, embeddings
from tropism.data.render import Rendered
from tropism.errors import DataError, ModelError
from tropism.site import base_model, context_length


@contextmanager
def as_measured(model: nn.Module, *, frozen: bool = True) -> Iterator[None]:
    """Dropout off and, where `frozen`, no parameter trainable inside; afterwards everything is as it was.

    Gradients with respect to activations need none of the parameters', and a frozen parameter costs no memory. In
    evaluation mode guards that act in training only are off: what is measured is the model without them.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluation_mode(model):
        try:
            for parameter in trainable if frozen else ():
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


@contextmanager
def head_reads_only(model: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Inside, the output embedding sees the hidden states at `(rows[m], columns[m])` alone, as `[1, M, d_model]`.

    What the model does to its logits afterwards (soft-capping, scaling) still happens.
    """
    inner = base_model(model)
    head = inner.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ModelError(f"{type(inner).__name__} has no output embedding, so it is no causal language model")

    handle = hooks.edit_input(head, lambda h: h[rows.to(h.device), columns.to(h.device)].unsqueeze(0))
    try:
        yield
    finally:
        handle.remove()


def response_losses(model: nn.Module, batch: Batch) -> Float[Tensor, "B"]:
    """Return each chat's mean loss over its response tokens, float32 `[B]`, on the graph.

    Chats do not interact, so the gradient of the sum of these losses holds, in each row, that chat's own gradient
    exactly: no rescaling by token counts is needed.
    """
    rows, columns, targets = [], [], []
    for row, chat in enumerate(batch.rows):
        for token in predicted(chat):
            rows.append(row)
            columns.append(batch.column(row, token - 1))  # the logits there predict the token
            targets.append(chat.input_ids[token])
    row_index, column_index = torch.tensor(rows), torch.tensor(columns)
    with head_reads_only(model, row_index, column_index):
        logits = model(**batch.inputs, use_cache=False).logits[0]
    with torch.autocast(logits.device.type, enabled=False):
        target = torch.tensor(targets, device=logits.device)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        token_losses = nn.functional.cross_entropy(wide, target, reduction="none")
        where = row_index.to(logits.device)
        sums = token_losses.new_zeros(len(batch.rows)).index_add(0, where, token_losses)
        return sums / torch.bincount(where, minlength=len(batch.rows))


def predicted(chat: Rendered) -> list[int]:
    """The response tokens that something predicts: all but one that stands first in the chat."""
    return [place for place in chat.positions["response"] if place > 0]


def check_lengths(model: nn.Module, rendered: Sequence[Rendered], names: Sequence[str]) -> None:
    """Raise `DataError` for a chat without a response, or one that is longer than the model's context."""
    limit = context_length(model)
    check_embedded(embeddings(model), rendered)
    for chat, name in zip(rendered, names, strict=True):
        if not predicted(chat):
            raise DataError(f"{name} has no response: its loss is undefined; end it with an assistant message")
        if limit is not None and len(chat) > limit:
            raise DataError(
                f"{name} has {len(chat)} tokens, over the model's {limit} positions; shorten it or leave it out"
            )
