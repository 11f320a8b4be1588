"""Pressure in weight space: how hard each chat's own gradient pushes an adapter along a change of the weights.

A linear layer with input `x_t` and output gradient `g_t` has the chat's weight gradient `G = Σ_t g_t x_tᵀ`. Everything
here is computed from `x` and `g`: no chat's `G [d_out, d_in]` is ever formed.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism import hooks
from tropism.adapters.factors import LoraFactors
from tropism.adapters.parts import at_weights, parts_of_model, require
from tropism.adapters.read import live_factors
from tropism.data.batches import batches, padding_id
from tropism.data.chats import Chat, Example
from tropism.directions.parameter import ParameterDirections
from tropism.errors import DataError, DirectionsMismatch
from tropism.probes.gradients import render_all
from tropism.probes.response_loss import as_measured, check_lengths, response_losses
from tropism.site import base_model, input_device

Space = Literal["adapter", "weight"]


def parameter_pressure(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat | Example],
    directions: ParameterDirections,
    batch_size: int = 8,
    *,
    space: Space = "adapter",
    template_kwargs: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """The alignment of every chat's own parameter gradient with each parameter direction `U`, over all its weights.

    `space="weight"`: `pressure = −⟨G, U⟩/‖U‖`, `G = ∂L/∂W`; needs no adapter.
    `space="adapter"`: the LoRA gradients `∂A = s·BᵀG`, `∂B = s·G·Aᵀ` against the tangents `s·BᵀU`, `s·U·Aᵀ`, in which
    `φ = ⟨U, s·B·A⟩` grows: `pressure = −⟨(∂A, ∂B), ∇φ⟩/‖∇φ‖`. Positive: a descent step moves the adapter along `U`.

    Columns: `chat, direction, pressure, cosine, gradient_norm, loss`; float32. Norms come from the tokens' Gram
    matrices, `‖G‖² = Σ_{t,t'} (x_t·x_t')(g_t·g_t')`.

    Raises:
        DirectionsMismatch: a weight of the directions is not in the model, has another shape, or (in adapter space) no
            single live LoRA adapter.
        DataError: as `collect_gradients` raises it for chats.
    """
    modules = _modules(model, directions)
    adapters = _live_adapters(model, directions) if space == "adapter" else {}
    names, rendered = render_all(tokenizer, chats, template_kwargs)
    check_lengths(model, rendered, [f"chat {name!r}" for name in names])
    tangent = _tangent_norms(directions, adapters) if space == "adapter" else directions.norms().float()
    parts = []
    with as_measured(model):
        for batch in batches(rendered, batch_size, pad_id=padding_id(tokenizer), device=input_device(model)):
            group = batch.places
            seen: dict[str, tuple[Tensor, Tensor]] = {}
            with ExitStack() as stack, torch.enable_grad():
                for name, module in modules.items():
                    stack.callback(hooks.edit_linear(module, _keep(name, seen)).remove)
                losses = response_losses(model, batch)
                outputs = [seen[name][1] for name in modules]
                found = torch.autograd.grad(losses.sum(), outputs)
            inner = torch.zeros(len(group), directions.k)
            square = torch.zeros(len(group))
            for name, g in zip(modules, found, strict=True):
                x = seen[name][0].detach().float()
                one, two = _at_weight(x, g.float(), directions, name, adapters.get(name))
                inner += one.cpu()
                square += two.cpu()
            norms = square.clamp_min(0).sqrt()
            if not (torch.isfinite(inner).all() and torch.isfinite(norms).all()):
                culprit = group[int((~torch.isfinite(norms + inner.sum(1))).nonzero()[0])]
                raise DataError(
                    f"chat {names[culprit]!r}: its parameter gradient is not finite; check the model's dtype"
                )
            along = inner / tangent
            for k in range(directions.k):
                parts.append(
                    pd.DataFrame(
                        {
                            "row": group,
                            "chat": [names[i] for i in group],
                            "direction": k,
                            "pressure": (-along[:, k]).numpy(),
                            "cosine": (along[:, k] / norms).numpy(),
                            "gradient_norm": norms.numpy(),
                            "loss": losses.detach().float().cpu().numpy(),
                        }
                    )
                )
    table = pd.concat(parts).sort_values(["direction", "row"], ignore_index=True)
    return table.drop(columns="row")


def _at_weight(
    x: Float[Tensor, "B T d_in"],
    g: Float[Tensor, "B T d_out"],
    directions: ParameterDirections,
    name: str,
    adapter: LoraFactors | None,
) -> tuple[Float[Tensor, "B k"], Float[Tensor, "B"]]:
    """Per chat, the inner products with the k directions and the squared norm of the gradient, at one weight."""
    factors = directions.factors[name]
    B_u, A_u = factors.B.to(x), factors.A.to(x)
    C = directions.coefficients(name).to(x)
    if adapter is None:
        inner = torch.einsum("btr,btr,kr->bk", g @ B_u, x @ A_u.T, C)
        return inner, _gram(x, g)
    A, B, s = adapter.A.detach().to(x), adapter.B.detach().to(x), adapter.scale
    # ⟨BᵀG, BᵀU⟩ and ⟨GAᵀ, UAᵀ⟩, each a sum over tokens of rank-sized products
    by_A = torch.einsum("btr,btr,kr->bk", (g @ B) @ (B.T @ B_u), x @ A_u.T, C)
    by_B = torch.einsum("btr,btr,kr->bk", g @ B_u, (x @ A.T) @ (A @ A_u.T), C)
    return s**2 * (by_A + by_B), s**2 * (_gram(x, g @ B) + _gram(x @ A.T, g))


def _gram(x: Float[Tensor, "B T m"], g: Float[Tensor, "B T n"]) -> Float[Tensor, "B"]:
    """`‖Σ_t g_t x_tᵀ‖²` of every chat."""
    return ((x @ x.transpose(1, 2)) * (g @ g.transpose(1, 2))).sum(dim=(1, 2))


def _tangent_norms(directions: ParameterDirections, adapters: Mapping[str, LoraFactors]) -> Float[Tensor, "k"]:
    """`‖∇φ_k‖` over all weights: `‖s·BᵀU_k‖² + ‖s·U_k·Aᵀ‖²`, from rank-sized Gram matrices."""
    square = torch.zeros(directions.k, dtype=torch.float64)
    for name, adapter in adapters.items():
        factors, C = directions.factors[name], directions.coefficients(name)
        B_u, A_u = factors.B.double(), factors.A.double()
        A, B = adapter.wide()
        left, right = B.T @ B_u, A_u @ A.T  # BᵀB_u [r, R], A_u Aᵀ [R, r]
        gram = (left.T @ left) * (A_u @ A_u.T) + (B_u.T @ B_u) * (right @ right.T)
        square += adapter.scale**2 * ((C @ gram) * C).sum(dim=1)
    return square.sqrt().float()


def _modules(model: nn.Module, directions: ParameterDirections) -> dict[str, nn.Module]:
    there = dict(base_model(model).named_modules())
    missing = [name for name in directions.weights if name not in there]
    if missing:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise DirectionsMismatch(
            f"the model has no {shown}, for which there are parameter directions; use those of this model"
        )
    embeddings = [name for name in directions.weights if isinstance(there[name], nn.Embedding)]
    embeddings += [
        name for name in directions.weights if isinstance(getattr(there[name], "base_layer", None), nn.Embedding)
    ]
    if embeddings:
        raise DirectionsMismatch(
            f"parameter pressure is measured at linear layers, and {embeddings[0]} is an embedding; make directions without it"
        )
    return {name: there[name] for name in directions.weights}


def _live_adapters(model: nn.Module, directions: ParameterDirections) -> dict[str, LoraFactors]:
    """The one live adapter's factors at each weight of the directions."""
    who = "parameter_pressure(space='adapter')"
    require("constrain", at_weights(parts_of_model(model), directions.weights), who, DirectionsMismatch)
    live: dict[str, list[LoraFactors]] = {name: [] for name in directions.weights}
    for held in live_factors(model):
        if held.place.weight in live:
            live[held.place.weight].append(held)
    for name, found in live.items():
        if len(found) != 1:
            raise DirectionsMismatch(
                f"{who} needs one live LoRA adapter at {name}, found {len(found)}; add one, or use space='weight'"
            )
    return {name: found[0] for name, found in live.items()}


def _keep(name: str, seen: dict[str, tuple[Tensor, Tensor]]) -> Any:
    def edit(x: Tensor, y: Tensor) -> Tensor:
        seen[name] = (x, y if y.requires_grad else y.detach().requires_grad_(True))
        return seen[name][1]

    return edit
