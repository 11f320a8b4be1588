"""Tier 2: where each row's gradient points, among the gradients that would write a trait.

At initialisation a LoRA adapter has `B = 0`, so training begins by moving `B` alone, and the gradient there is
`∂L/∂B = s·Σ_t g_t (A x_t)ᵀ` at every adapted weight, with `x_t [d_in]` its input, `g_t [d_out]` the gradient of its
output, and `A [r, d_in]` random. Each chat's own gradient over all weights is kept as a sketch of 4,096 numbers:

    sketch = Σ_W Σ_t S_W(g_t) (A_W x_t)ᵀ,    S_W a count sketch of d_out into 256 buckets,

whose inner products are those of the gradients in expectation. Nothing of the size of a weight is made, and no
adapter is put on the model. A trait's gradient is the mean over its pairs of `u(with) − u(without)`, with `u = ∇L/‖∇L‖`:
descending on data whose gradient has a positive cosine with it lowers the loss of responses with the trait, against
those without. Each chat counts alike, because the longest gradients are those of the shortest texts.

The later half of the blocks is read: the backward pass then ends there, at half of its cost.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tropism import hooks
from tropism.data.batches import batches, padding_id
from tropism.data.chats import Chat
from tropism.data.render import render
from tropism.errors import DataError, ModelError
from tropism.probes.response_loss import as_measured, response_losses
from tropism.site import decoder_layers, input_device

RANK, BUCKETS = 16, 256
"""A sketch holds `RANK · BUCKETS` numbers."""


@dataclass(frozen=True, eq=False)
class Sketcher:
    """How one weight's gradient is sketched: `A` as LoRA begins with, and the count sketch of its output."""

    A: Tensor
    bucket: Tensor
    sign: Tensor

    @classmethod
    def at(cls, name: str, d_in: int, d_out: int, seed: int) -> "Sketcher":
        """Drawn from the seed and the weight's name, so that every model of this shape is sketched alike."""
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
        A = torch.randn((RANK, d_in), generator=generator) / d_in**0.5
        bucket = torch.randint(BUCKETS, (d_out,), generator=generator)
        sign = torch.randint(2, (d_out,), generator=generator) * 2.0 - 1.0
        return cls(A, bucket, sign)

    def sketch(self, x: Tensor, g: Tensor) -> Tensor:
        """`[B, RANK · BUCKETS]` of every chat in a batch, from `x [B, T, d_in]` and `g [B, T, d_out]`."""
        down = x.float() @ self.A.to(x.device).T
        folded = g.new_zeros((*g.shape[:2], BUCKETS), dtype=torch.float32)
        folded.index_add_(2, self.bucket.to(g.device), g.float() * self.sign.to(g.device))
        return torch.einsum("btr,btk->brk", down, folded).flatten(1)


def adapted_linears(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers in the later half of the blocks, by name."""
    blocks = decoder_layers(model)
    found: dict[str, nn.Module] = {}
    for index in range(len(blocks) // 2, len(blocks)):
        for name, module in blocks[index].named_modules():
            if isinstance(module, nn.Linear | Conv1D) or hasattr(module, "base_layer"):  # PEFT's wrapper of a linear
                found[f"{index}.{name}"] = module
    # Inside PEFT's wrapper lies the linear itself: the outermost is the one whose output the block uses.
    return {name: module for name, module in found.items() if not any(name.startswith(f"{other}.") for other in found)}


def sketches(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat],
    *,
    batch_size: int = 8,
    seed: int = 0,
    template_kwargs: Mapping[str, Any] | None = None,
    where: str = "row",
) -> np.ndarray:
    """Each chat's own gradient of its mean response loss, as a sketch: float32 `[n, 4096]`.

    Raises `ModelError` where a block has no linear layers of `[B, T, d]`, `DataError` for a gradient that is not finite.
    """
    rendered = [
        render(tokenizer, chat, template_kwargs=template_kwargs, where=f"{where} {index}")
        for index, chat in enumerate(chats)
    ]
    linears = adapted_linears(model)
    if not linears:
        raise ModelError(
            "forecast: the later half of the blocks has no linear layers to take gradients at; use --tier projection"
        )
    out = np.zeros((len(rendered), RANK * BUCKETS), dtype=np.float32)
    makers: dict[str, Sketcher] = {}
    with as_measured(model):
        for batch in batches(rendered, batch_size, pad_id=padding_id(tokenizer), device=input_device(model)):
            seen: dict[str, tuple[Tensor, Tensor]] = {}
            with ExitStack() as stack, torch.enable_grad():
                for name, module in linears.items():
                    stack.callback(hooks.edit_linear(module, partial(_keep, name, seen)).remove)
                loss = response_losses(model, batch).sum()
                # Experts that no token was sent to did not run; a [tokens, d] layout cannot be told apart by chat.
                ran = [name for name in linears if name in seen and seen[name][1].ndim == 3]
                if not ran:
                    raise ModelError(
                        "forecast: no linear layer of the later blocks sees its rows as [B, T, d]; use --tier projection"
                    )
                gradients = torch.autograd.grad(loss, [seen[name][1] for name in ran], allow_unused=True)
            total = torch.zeros((len(batch.rows), RANK * BUCKETS))
            for name, g in zip(ran, gradients, strict=True):
                if g is None:
                    continue
                x = seen[name][0].detach()
                if name not in makers:
                    makers[name] = Sketcher.at(name, x.shape[-1], g.shape[-1], seed)
                total += makers[name].sketch(x, g).cpu()
            if not torch.isfinite(total).all():
                bad = batch.places[int((~torch.isfinite(total).all(dim=1)).nonzero()[0])]
                raise DataError(f"{where} {bad}: its gradient is not finite; load the model in bfloat16 or float32")
            out[batch.places] = total.numpy()
    return out


def _keep(name: str, seen: dict[str, tuple[Tensor, Tensor]], x: Tensor, y: Tensor) -> Tensor:
    """Keep a linear's input and output; the graph begins at the first of them, since every parameter is frozen."""
    seen[name] = (x, y if y.requires_grad else y.detach().requires_grad_(True))
    return seen[name][1]


def units(rows: np.ndarray) -> np.ndarray:
    """Rows `[n, m]` of length 1; a row that is zero stays zero."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    long: np.ndarray = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return long


def cosines(rows: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The cosine of each row `[n, m]` with a direction `[m]`; 0 for a row that is zero."""
    norms = np.linalg.norm(rows, axis=-1) * np.linalg.norm(direction)
    inner = rows @ direction
    found: np.ndarray = np.divide(inner, norms, out=np.zeros_like(inner), where=norms > 0)
    return found


def sign_flips(pairs: np.ndarray, mean_row: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """Cosines `[draws]` of the data's mean gradient with the trait's, the sides of each pair swapped by chance.

    `pairs [p, m]` holds `u(with) − u(without)` pair by pair. Swapping keeps what the pairs' prompts and lengths do to
    a gradient and takes the trait out: the null of "these pairs, without the trait".
    """
    flips = np.random.default_rng(seed).integers(2, size=(draws, len(pairs))) * 2 - 1
    return cosines(flips @ pairs / len(pairs), mean_row)
