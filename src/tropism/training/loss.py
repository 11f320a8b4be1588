"""The supervised loss, with logits computed only where there are labels.

A logits tensor is `B·T·V` numbers, and in a chat fine-tune most of its rows belong to the prompt. Here a pre-hook on
the output embedding selects the hidden states whose next token is supervised, so the model's own forward (soft-capping,
wrappers, DDP, FSDP) computes `[1, n, V]` and the labels stay outside the model. `SupervisedLoss` holds not even those.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tropism import hooks
from tropism.chunked_loss import NUMBERS, find_tail, fit, needs_logits, summed_loss
from tropism.errors import GuardNotInForce
from tropism.interventions.base import attachments
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
def _at_the_head(model: nn.Module, use: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Inside, the head is given `use(h [n, d], targets [n])` in place of the hidden states of a call with `supervised`."""
    held: list[Tensor] = []

    def take(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        held.clear()
        labels = kwargs.pop(SUPERVISED, None)
        if labels is not None:
            held.append(labels)
        return args, kwargs

    def select(h: Tensor) -> Tensor | None:
        if not held:
            return None
        labels = held.pop()
        return use(h[supervised_positions(labels)], _targets(labels)).unsqueeze(0)

    head = base_model(model).get_output_embeddings()
    handles = [*hooks.around_forward(model, before=take), hooks.edit_input(head, select)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def label_logits(model: nn.Module) -> Iterator[None]:
    """Inside, `model(**batch, supervised=labels)` returns logits `[1, n, V]`, one row a supervised token.

    Rows are in the order of `labels[:, 1:][labels[:, 1:] != -100]`. A call without `supervised` computes all logits.
    """
    with _at_the_head(model, lambda h, _targets: h):
        yield


class SupervisedLoss:
    """`response_loss` without its logits: chunk by chunk where the model allows it (`chunked_loss`), whole where it does not.

    A Trainer's `compute_loss_func`; `in_force` surrounds the training. The model then returns the logits of one position
    in place of all. They are whole where all of a batch are no more than one chunk (`numbers`), the model does more behind its
    head than scale and softcap, its weights are sharded, or something hooks its head. The same loss and gradients to
    rounding, either way.
    """

    def __init__(self, model: nn.Module, numbers: int = NUMBERS) -> None:
        self._model, self._numbers = model, numbers
        self._total: Tensor | None = None

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Find out, before a guard is attached, what the model does behind its head; inside, take its loss there."""
        head: Any = base_model(self._model).get_output_embeddings()
        tail = find_tail(self._model)

        def use(h: Tensor, targets: Tensor) -> Tensor:
            self._total = None
            if tail is None or fit(head, h, self._numbers) or needs_logits(head, hooks_of_ours=1):
                return h
            self._total = summed_loss(head, tail, h, targets, self._numbers)
            return h[:1]  # not detached: DDP looks for unused weights behind what the model returns

        try:
            with _at_the_head(self._model, use):
                yield
        finally:
            self._total = None

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the loss of the forward pass that ended last, with what guards on the loss add to it."""
        total, self._total = self._total, None
        count = _targets(labels).shape[0] if num_items_in_batch is None else num_items_in_batch
        loss = response_loss(outputs, labels, num_items_in_batch) if total is None else total / count
        for guard in attachments(self._model):
            added = guard.added_loss()
            loss = loss if added is None else loss + added / count
        if total is not None:
            for guard in attachments(self._model):
                guard.watch_loss(loss)
        return loss


def _targets(labels: Tensor) -> Tensor:
    return labels[:, 1:][labels[:, 1:] != IGNORE]


def response_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """`−Σ log p(label) / n`, in float32 (float64 for float64): the mean over supervised tokens of the whole accumulated batch.

    `outputs.logits` is `[1, n, V]` from `label_logits`; `n` is `num_items_in_batch` where the Trainer gives it.
    """
    targets = _targets(labels)
    logits = outputs["logits"].squeeze(0)
    if logits.shape[0] != targets.shape[0]:
        raise GuardNotInForce(
            f"label-only logits are not in force: the model returned {logits.shape[0]} rows for {targets.shape[0]} labels; "
            f"train inside tropism.training.loss.label_logits(model)"
        )
    wide = logits if logits.dtype == torch.float64 else logits.float()
    total = F.cross_entropy(wide, targets, reduction="sum")
    return total / (targets.shape[0] if num_items_in_batch is None else num_items_in_batch)
