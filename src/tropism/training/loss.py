"""The supervised loss, with logits computed only where there are labels.

A logits tensor is `B·T·V` numbers, and in a chat fine-tune most of its rows belong to the prompt. Here a pre-hook on
the output embedding selects the hidden states whose next token is supervised, so the model's own forward (soft-capping,
wrappers, DDP, FSDP) computes `[1, n, V]` and the labels stay outside the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tropism import hooks
from tropism.errors import GuardNotInForce
from tropism.names import IGNORE
from tropism.site import base_model

SUPERVISED = "supervised"
"""The batch column that tells the model's hooks which tokens are supervised: the labels again, taken out on entry."""


def supervised_positions(labels: Tensor) -> Tensor:
    """Bool `[B, T]`: True where the *next* token has a label, which is where its logits are needed."""
    wanted = torch.zeros_like(labels, dtype=torch.bool)
    wanted[:, :-1] = labels[:, 1:] != IGNORE
    return wanted


@contextmanager
def label_logits(model: nn.Module) -> Iterator[None]:
    """Inside, `model(**batch, supervised=labels)` returns logits `[1, n, V]`, one row a supervised token.

    Rows are in the order of `labels[:, 1:][labels[:, 1:] != -100]`. A call without `supervised` computes all logits.
    """
    wanted: list[Tensor] = []

    def take(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        wanted.clear()
        labels = kwargs.pop(SUPERVISED, None)
        if labels is not None:
            wanted.append(supervised_positions(labels))
        return args, kwargs

    def select(h: Tensor) -> Tensor | None:
        return h[wanted.pop()].unsqueeze(0) if wanted else None

    head = base_model(model).get_output_embeddings()
    handles = [*hooks.around_forward(model, before=take), hooks.edit_input(head, select)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def response_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """`−Σ log p(label) / n`, in float32: the mean over supervised tokens of the whole accumulated batch.

    `outputs.logits` is `[1, n, V]` from `label_logits`; `n` is `num_items_in_batch` where the Trainer gives it.
    """
    targets = labels[:, 1:][labels[:, 1:] != IGNORE]
    logits = outputs["logits"].squeeze(0)
    if logits.shape[0] != targets.shape[0]:
        raise GuardNotInForce(
            f"label-only logits are not in force: the model returned {logits.shape[0]} rows for {targets.shape[0]} labels; "
            f"train inside tropism.training.loss.label_logits(model)"
        )
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    return total / (targets.shape[0] if num_items_in_batch is None else num_items_in_batch)
