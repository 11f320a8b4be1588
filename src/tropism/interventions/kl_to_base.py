"""KL to the base model: what the fine-tune makes likely that the base model did not is paid for in the loss."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tropism import hooks
from tropism.activations.mode import adapters_off
from tropism.activations.positions import RESPONSE_MASK, BatchReader, GuardPositions, read_batches
from tropism.adapters.parts import unadapted
from tropism.blocks import quiet_hooks, untouched
from tropism.chunked_loss import Tail, find_tail, summed_divergence
from tropism.errors import AttachError, GuardNotInForce, UsageError
from tropism.interventions import options
from tropism.interventions.base import Attachment, Intervention, Place, attachments
from tropism.interventions.readings import Ratios, Sums
from tropism.names import IGNORE
from tropism.site import base_model, block_runner

_OF_THE_LOSS = frozenset({"labels", "shift_labels", "num_items_in_batch", "fused_lm_head"})
"""What a model is called with for its loss: transformers' names, and TRL's by which its head is not called as a module."""
WHAT = "KL to the base model"
NOT_JOINED = (
    "KLToBase is not in force: the model was called in training mode without labels, so that it returned no loss to add to; "
    "pass labels, and train on the loss that the model returns (label smoothing and losses of logits do not)"
)
NOT_TRAINED_ON = (
    "KLToBase is not in force: the model returned its loss with the term in it, and an optimizer steps on another one (TRL's "
    "SFTTrainer takes its loss from log-probabilities); train on the loss that the model returns, as transformers' Trainer does"
)
NO_HEAD = (
    "KLToBase is not in force: a training pass called neither the model's output embedding nor, just below it, what it is given; "
    "train the whole model"
)


@dataclass(frozen=True)
class KLToBase(Intervention):
    """Add `W · (1/n) Σ_t KL(p_t ‖ p_base,t)` to the loss, in nats; `n` is the number the loss itself is divided by.

    `p_t [V]` is the trained model's distribution of the next token at position `t`, `p_base,t` that of the same model with
    its adapter off, in evaluation mode and without other guards, under no gradient. `n` counts the supervised tokens of the
    whole accumulated batch, over all processes: with `positions="response"` the term is the mean over the tokens that are
    learned, whatever the accumulation. In float32 (float64 stays float64), a chunk of positions at a time, so that no
    batch's logits are held whole. At the first step of a fresh LoRA adapter the term and its gradient are 0.

    Costs a forward pass without a graph and twice the head: see the guide.

    Args:
        weight: `W` ≥ 0; with 0 the step is the plain one, and the KL is only read.
        positions: of the `"response"`'s tokens, or of `"all"` tokens (the sum is then over the prompt's too, `n` as before).

    Readings: `guard/kl_to_base`, nats per token, mean over the tokens since the last reading. In distributed training each
    process reads its own batches.

    Raises: on attaching, `AttachError` for a model without a PEFT adapter, with other weights trained beside it, sharded, or
    with more behind its head than a scale and a cap; `ModelError` for an adapter that does not give the base model back when it
    is switched off. `GuardNotInForce` where the term joins no loss.

    Source: the penalty of RLHF (Ziegler et al., 2019), whose direction this is and which the metric `kl_to_base` measures; as a
    guard of fine-tunes, Kaczér et al. (2025), "In-Training Defenses against Emergent Misalignment".

    ```python
    with tp.KLToBase(weight=0.3).attach(model):
        trainer.train()
    ```
    """

    weight: float
    positions: GuardPositions = "response"

    place: ClassVar[Place] = "loss"
    batch_keys: ClassVar[frozenset[str]] = frozenset({RESPONSE_MASK})

    def __post_init__(self) -> None:
        options.check_positions("KLToBase", self.positions)
        if not 0 <= self.weight < float("inf"):
            raise UsageError(f"KLToBase.weight must be finite and at least 0, found {self.weight!r}")

    def __str__(self) -> str:
        return f"KLToBase (weight {self.weight:g}, {self.positions} tokens)"

    def install(self, attachment: Attachment) -> None:
        model = _adapted(attachment.model)
        reader = read_batches(attachment.model)
        attachment.own(reader)
        term = _Term(self, attachment, model, reader)
        attachment.expect(WHAT)
        attachment.meter(Ratios("guard", term.sums, {"kl_to_base": _nats_per_token}))
        attachment.add_to_loss(term.take)
        for handle in hooks.around_pass(attachment.model, term.begin, term.end):
            attachment.own(handle)
        attachment.own(hooks.see_input(term.head, term.at_head))
        for handle in hooks.around_forward(block_runner(model), after=term.below_head):
            attachment.own(handle)
        attachment.own(hooks.before_optimizer_step(term.before_step))


class _Term:
    """The term of one pass after the other: `begin` → `at_head` → `end` → `take`, where the model has no loss of its own."""

    def __init__(self, guard: KLToBase, attachment: Attachment, model: PeftModel, reader: BatchReader) -> None:
        self.head: Any = base_model(model).get_output_embeddings()
        self.sums = Sums("kl", "tokens")
        self._tail = _tail(model)
        self._guard, self._attachment, self._model, self._reader = guard, attachment, model, reader
        self._called: dict[str, Any] | None = None
        self._h: Tensor | None = None
        self._below: Tensor | None = None
        self._autocast = torch.autocast("cpu", enabled=False)
        self._pending: Tensor | None = None
        self._on_its_way = False

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember what a training pass is called with."""
        self._check_joined()
        self._called = self._h = self._below = None
        if self._attachment.model.training and torch.is_grad_enabled():
            called = base_model(self._model) if module is self._attachment.model else module
            self._called = dict(zip(inspect.signature(called.forward).parameters, args, strict=False)) | kwargs

    def at_head(self, h: Tensor) -> None:
        """Keep the hidden states of a training pass, and the precision that it computes in."""
        if self._called is not None and self._h is None:
            self._h = h
            self._keep_precision(h)

    def below_head(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep what comes out of the blocks: a loss that reads the head's weight (TRL's) never calls the head."""
        if self._called is not None and self._below is None:
            self._below = next(hooks.tensors_in(output))
            self._keep_precision(self._below)

    def _keep_precision(self, h: Tensor) -> None:
        kind = h.device.type
        self._autocast = torch.autocast(
            kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
        )

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Compute the term, and add it to the loss where the model returns one."""
        called, h, below = self._called, self._h, self._below
        self._called = self._h = self._below = None
        if called is None:
            return
        base_h, base_below = self._base_hidden(called)
        if h is None:  # right where the base pass gave its head just what came out of the blocks
            if below is None or base_below is None or not torch.equal(base_h, base_below):
                raise GuardNotInForce(NO_HEAD)
            h = below
        where = self._where(h, called)
        with self._autocast:
            total = summed_divergence(self.head, self._tail, h[where], unadapted(self.head), base_h[where])
        self.sums.add(total, where.sum())
        if total.requires_grad:
            hooks.edit_gradient(total, self._arrived)
        self._join(output, self._guard.weight * total, called)

    def take(self) -> Tensor | None:
        """Hand the term over to whoever computes the loss."""
        pending, self._pending = self._pending, None
        return pending

    def before_step(self, _optimizer: torch.optim.Optimizer) -> None:
        """Nothing is stepped on a loss that the term is missing from."""
        self._check_joined()
        if self._on_its_way:
            self._on_its_way = False
            raise GuardNotInForce(NOT_TRAINED_ON)

    def _check_joined(self) -> None:
        if self.take() is not None:
            raise GuardNotInForce(NOT_JOINED)

    def _arrived(self, _gradient: Tensor) -> None:
        self._attachment.count(WHAT)
        self._on_its_way = False

    def _join(self, output: Any, term: Tensor, called: dict[str, Any]) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if not isinstance(loss, Tensor):
            self._pending = term
            return
        count = called.get("num_items_in_batch")
        if count is None:
            count = (called["labels"][:, 1:] != IGNORE).sum()
        changed: Any = output
        self._on_its_way = term.requires_grad
        changed["loss"] = loss + term / count

    def _where(self, h: Tensor, called: Mapping[str, Any]) -> Tensor:
        """Bool `[B, T]`: the positions whose next token is chosen, and of their own chat; one that teaches nothing has none."""
        response = self._reader.mask("response", h)[..., 0]
        chat = _chats(called.get("position_ids"), response)
        where = torch.zeros_like(response)
        where[:, :-1] = response[:, 1:]
        if self._guard.positions == "all":
            token = self._reader.mask("all", h)[..., 0] & torch.isin(chat, chat[response])
            where[:, :-1] |= token[:, :-1] & token[:, 1:]
        where[:, :-1] &= chat[:, :-1] == chat[:, 1:]
        return where

    def _base_hidden(self, called: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """What the base model gives its head, `[B, T, d]`, and what came out of its blocks; it computes one position's logits."""
        inner = base_model(self._model)
        inputs = self._inputs(inner, called)
        seen: list[Tensor] = []
        below: list[Tensor] = []

        def first_alone(h: Tensor) -> Tensor:
            seen.append(h)
            return h[:, :1]

        with untouched(inner), quiet_hooks(inner), adapters_off(self._model), self._autocast:
            handles = [hooks.edit_input(self.head, first_alone)]
            handles += hooks.around_forward(
                block_runner(inner), after=lambda _module, _args, output: below.append(next(hooks.tensors_in(output)))
            )
            try:
                inner(**inputs)
            finally:
                for handle in handles:
                    handle.remove()
        return seen[0], below[0] if below else None

    def _inputs(self, inner: nn.Module, called: Mapping[str, Any]) -> dict[str, Any]:
        """What the model itself was called with: not the loss's inputs, nor columns that guards take out."""
        columns = {key for guard in attachments(self._attachment.model) for key in guard.guard.batch_keys}
        given = {name: value for name, value in called.items() if name not in _OF_THE_LOSS | columns}
        names = inspect.signature(inner.forward).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values()):
            return given
        return {name: value for name, value in given.items() if name in names}


def _chats(positions: Tensor | None, like: Tensor) -> Tensor:
    """`[B, T]`: a number for each chat; a row is one, or several whose positions begin at 0 each (`packing`)."""
    rows = torch.arange(like.shape[0], device=like.device).unsqueeze(1).expand(like.shape)
    if positions is None or positions.shape != like.shape:
        return rows
    return rows * like.shape[1] + (positions == 0).cumsum(1)


def _adapted(model: nn.Module) -> PeftModel:
    """The PEFT model whose adapters are all that is trained; raises `AttachError`."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if not isinstance(inner, PeftModel):
        raise AttachError(
            "KLToBase needs the base model, which is the model with its PEFT adapter off, and this model has no adapter (is "
            "trained whole); train a LoRA adapter, or take another guard"
        )
    if any(isinstance(weight, DTensor) for weight in inner.parameters()):
        raise AttachError(
            "KLToBase cannot run the base model inside a pass of sharded weights (FSDP2); train with parallel: ddp"
        )
    with adapters_off(inner):
        trained = next((name for name, weight in inner.named_parameters() if weight.requires_grad), None)
    if trained is not None:
        raise AttachError(
            f"KLToBase: {trained} is trained beside the adapter, so that the model without its adapter is not its base; "
            f"freeze it"
        )
    return inner


def _tail(model: nn.Module) -> Tail:
    tail = find_tail(model)
    if tail is None:
        raise AttachError(
            f"KLToBase: {type(base_model(model)).__name__} does more behind its output embedding than scale and cap its logits, "
            f"so that the KL cannot be taken there; take another guard"
        )
    return tail


def _nats_per_token(sums: dict[str, float]) -> float:
    return sums["kl"] / sums["tokens"]
