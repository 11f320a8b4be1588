"""The only file that touches torch hooks and the tuples that some architectures' blocks return.

Blocks return a tensor in most architectures and a tuple that begins with one in others (gptj, bloom, falcon, mpt):
`edit_output` sees the tensor either way. Every function returns handles; nothing here keeps state.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from tropism.errors import ModelError, SiteError
from tropism.site import Site, decoder_layers

Edit = Callable[[Tensor], Tensor | None]
"""Takes `h [B, T, d]` and returns its replacement, or None to leave it."""

_ATTENTION = ("post_self_attn_layernorm", "self_attention.dense", "self_attn", "attn", "self_attention", "attention")
_MLP = (
    "post_mlp_layernorm",
    "mlp.dense_4h_to_h",
    "ffn.down_proj",
    "fc2",
    "mlp",
    "feed_forward",
    "ffn",
    "block_sparse_moe",
    "moe",
)
"""Where a block's submodules leave what they add to the stream, most specific first: Bloom's and MPT's attention or MLP
add the residual themselves, so there it is their last linear."""

_SANDWICH = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
"""Blocks with both of these norm what attention and MLP computed before adding it (Gemma 2 and 3, OLMo 2); the first
name alone is the norm *before* the MLP in most others."""


def module_at(model: nn.Module, site: Site) -> tuple[nn.Module, bool]:
    """The module whose output (or, where the flag is True, input) is the activation at `site`."""
    layers = decoder_layers(model)
    if site.layer >= len(layers):
        raise SiteError(f"{site} is past the last block: the model has blocks 0 to {len(layers) - 1}")
    block = layers[site.layer]
    if site.stream == "resid_post":
        return block, False
    if site.stream == "resid_pre":
        return block, True
    submodules = dict(block.named_modules())
    if set(_SANDWICH.values()) <= submodules.keys():
        return submodules[_SANDWICH[site.stream]], False
    for path in _ATTENTION if site.stream == "attn_out" else _MLP:
        if path in submodules:
            return submodules[path], False
    children = ", ".join(name for name, _ in block.named_children())
    raise SiteError(f"{site}: {type(block).__name__} has no submodule that computes it (it has: {children})")


def edit_activation(model: nn.Module, site: Site, edit: Edit) -> RemovableHandle:
    """Run `edit` on the activation at `site` in every forward pass, and put what it returns in its place."""
    module, at_input = module_at(model, site)
    if not at_input:

        def on_output(_module: nn.Module, _args: Any, output: Any) -> Any:
            h = first_tensor(output)
            edited = edit(h)
            return None if edited is None or edited is h else with_first_tensor(output, edited)

        return module.register_forward_hook(on_output)

    return edit_input(module, edit)


def edit_input(module: nn.Module, edit: Edit) -> RemovableHandle:
    """Put `edit(h)` in place of the hidden states `h` that a module is called with; None leaves them."""

    def on_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            edited = edit(args[0])
            return None if edited is None else ((edited, *args[1:]), kwargs)
        edited = edit(kwargs["hidden_states"])
        return None if edited is None else (args, {**kwargs, "hidden_states": edited})

    return module.register_forward_pre_hook(on_input, with_kwargs=True)


def first_tensor(output: Any) -> Tensor:
    """The activation in a block's output: the output itself, or the first member of a tuple."""
    h = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(h, Tensor):
        raise ModelError(f"a decoder block returned {type(output).__name__}, in which no activation tensor comes first")
    return h


def with_first_tensor(output: Any, h: Tensor) -> Any:
    """The same output with `h` in place of its activation; a tuple stays a tuple, a list a list."""
    if isinstance(output, Tensor):
        return h
    return type(output)((h, *output[1:]))


def edit_linear(linear: nn.Module, edit: Callable[[Tensor, Tensor], Tensor]) -> RemovableHandle:
    """Put `edit(x, y)` in place of the output `y` of a module of one input `x`."""
    return linear.register_forward_hook(lambda _module, args, y: edit(args[0], y))


def before_optimizer_step(prepare: Callable[[torch.optim.Optimizer], None]) -> RemovableHandle:
    """Run `prepare(optimizer)` just before any torch optimiser steps, also one inside a wrapper (accelerate)."""
    return register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: prepare(optimizer))


def around_step(
    optimizer: torch.optim.Optimizer, before: Callable[..., None] | None = None, after: Callable[[], None] | None = None
) -> list[RemovableHandle]:
    """Call `before(optimizer, args, kwargs)` ahead of every step of this optimiser and `after()` behind it."""
    handles = []
    if before is not None:
        handles.append(optimizer.register_step_pre_hook(before))
    if after is not None:
        handles.append(optimizer.register_step_post_hook(lambda *_: after()))
    return handles


def around_forward(
    module: nn.Module, before: Callable[..., Any] | None = None, after: Callable[..., None] | None = None
) -> list[RemovableHandle]:
    """Call `before(module, args, kwargs)` ahead of every forward pass and `after(module, args, output)` behind it.

    `before` may return `(args, kwargs)` to replace them.
    """
    handles = []
    if before is not None:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    if after is not None:
        handles.append(module.register_forward_hook(after))
    return handles


def edit_gradient(h: Tensor, edit: Callable[[Tensor], Tensor | None]) -> None:
    """Run `edit` on `∂L/∂h` when the backward pass reaches `h`; it lives and dies with the graph that `h` is on."""
    h.register_hook(edit)  # type: ignore[no-untyped-call]


def replaying() -> bool:
    """Whether a backward pass is under way: a forward hook that runs now runs inside a checkpoint's recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors of a model's output: of a tensor, of tuples and lists, of a `ModelOutput`; caches are not entered."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from tensors_in(value)
