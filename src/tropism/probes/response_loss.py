"""Every chat's own mean response loss, with logits computed only where a response is predicted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism import hooks
from tropism.data.render import Rendered
from tropism.errors import DataError, ModelError
from tropism.site import base_model


@contextmanager
def as_measured(model: nn.Module, *, frozen: bool = True) -> Iterator[None]:
    """Dropout off and, where `frozen`, no parameter trainable inside; afterwards everything is as it was.

    Gradients with respect to activations need none of the parameters', and a frozen parameter costs no memory. In
    evaluation mode guards that act in training only are off: what is measured is the model without them.
    """
    training = {module: module.training for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable if frozen else ():
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, flag in training.items():
            module.training = flag


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


def response_losses(model: nn.Module, rendered: Sequence[Rendered], batch: dict[str, Tensor]) -> Float[Tensor, "B"]:
    """Each chat's mean loss over its response tokens, float32 `[B]`, on the graph.

    `batch` is `rendered`, padded. Chats do not interact, so the gradient of the sum of these losses holds, in each
    row, that chat's own gradient exactly: no rescaling by token counts is needed.
    """
    real = batch["attention_mask"].bool()
    rows, columns, targets = [], [], []
    for row, chat in enumerate(rendered):
        start = int(real[row].nonzero()[0])
        for place in predicted(chat):
            rows.append(row)
            columns.append(start + place - 1)
            targets.append(chat.input_ids[place])
    row_index, column_index = torch.tensor(rows), torch.tensor(columns)
    device = next(model.parameters()).device
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    with head_reads_only(model, row_index, column_index):
        logits = model(**inputs, use_cache=False).logits[0]
    with torch.autocast(logits.device.type, enabled=False):
        target = torch.tensor(targets, device=logits.device)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        token_losses = nn.functional.cross_entropy(wide, target, reduction="none")
        where = row_index.to(logits.device)
        sums = token_losses.new_zeros(len(rendered)).index_add(0, where, token_losses)
        return sums / torch.bincount(where, minlength=len(rendered))


def predicted(chat: Rendered) -> list[int]:
    """The response tokens that something predicts: all but one that stands first in the chat."""
    return [place for place in chat.positions["response"] if place > 0]


def check_lengths(model: nn.Module, rendered: Sequence[Rendered], names: Sequence[str]) -> None:
    """Raise `DataError` for a chat without a response, or one that is longer than the model's context."""
    config = base_model(model).config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]
    limit = getattr(config, "max_position_embeddings", None)  # theirs: absent where positions are unbounded
    for chat, name in zip(rendered, names, strict=True):
        if not predicted(chat):
            raise DataError(f"{name} has no response: its loss is undefined; end it with an assistant message")
        if limit is not None and len(chat) > limit:
            raise DataError(
                f"{name} has {len(chat)} tokens, over the model's {limit} positions; shorten it or leave it out"
            )
