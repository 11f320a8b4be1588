"""The only file, beside the probe in `blocks`, that touches torch hooks and the tuples that some architectures' blocks return.

Blocks return a tensor in most architectures and a tuple that begins with one in others (gptj, bloom, falcon, mpt):
`edit_activation` sees the tensor either way. Every function that places hooks returns handles.

A deep copy of a hooked model is plain: nobody watches the copy, so nothing may act on it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial, update_wrapper
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from tropism.blocks import branch, with_hidden_states
from tropism.blocks import first_tensor as first_tensor
from tropism.blocks import with_first_tensor as with_first_tensor
from tropism.errors import ModelError, SiteError
from tropism.site import Site, base_model, block_runner, decoder_layers, parallel_streams, time_first

Edit = Callable[[Tensor], Tensor | None]
"""Takes `h [B, T, d]` and returns its replacement, or None to leave it."""


class _Hook:
    """What is hung on a module: it calls, and whatever copies or pickles the module gets one that does nothing."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (_nothing,)


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """A hook that leaves everything as it is."""


def _before_forward(module: nn.Module, call: Callable[..., Any], *, with_kwargs: bool = False) -> RemovableHandle:
    return module.register_forward_pre_hook(_Hook(call), with_kwargs=with_kwargs)


def _after_forward(module: nn.Module, call: Callable[..., Any], *, always_call: bool = False) -> RemovableHandle:
    return module.register_forward_hook(_Hook(call), always_call=always_call)


def module_at(model: nn.Module, site: Site) -> tuple[nn.Module, bool]:
    """The module whose output (or, where the flag is True, input) is the activation at `site`.

    `attn_out` and `mlp_out` are verified by a probe pass, the first time that a model is asked (`blocks.branch`).
    """
    layers = decoder_layers(model)
    if site.layer >= len(layers):
        raise SiteError(f"{site} is past the last block: the model has blocks 0 to {len(layers) - 1}")
    block = layers[site.layer]
    several = parallel_streams(model)
    if several is not None:
        raise SiteError(
            f"{site}: the blocks of {type(base_model(model)).__name__} carry several residual streams side by side "
            f"({several}), so there is no one stream [B, T, d_model] to read or edit; guards on parameters "
            "(UpdateConstraint, GradientRouting) need no site"
        )
    if time_first(model):
        raise SiteError(
            f"{site}: the blocks of {type(base_model(model)).__name__} pass on [T, B, d_model], time first, where guards "
            "and probes read [B, T, d_model]"
        )
    if site.stream == "resid_post":
        return block, False
    if site.stream == "resid_pre":
        return block, True
    return branch(model, site.layer, site.stream), False


def edit_activation(model: nn.Module, site: Site, edit: Edit) -> RemovableHandle:
    """Run `edit` on the activation at `site` in every forward pass, and put what it returns in its place."""
    module, at_input = module_at(model, site)
    checked = partial(_edit_checked, site, edit)
    if at_input:
        return edit_input(module, checked)
    return _after_forward(module, partial(_edit_output, checked))


def _edit_checked(site: Site, edit: Edit, h: Tensor) -> Tensor | None:
    # [B·T, d] is fine too: some submodules see tokens, not rows.
    if h.dim() > 3:
        raise ModelError(
            f"the activation at {site} must be [B, T, d_model], the one residual stream, found {list(h.shape)}; this "
            "model's blocks pass on something else, which no guard or probe here can read"
        )
    return edit(h)


def _edit_output(edit: Edit, _module: nn.Module, _args: Any, output: Any) -> Any:
    h = first_tensor(output)
    edited = edit(h)
    return None if edited is None or edited is h else with_first_tensor(output, edited)


def after_blocks(model: nn.Module, see: Callable[[Tensor], None]) -> list[RemovableHandle]:
    """Show `see` the first tensor that each block returns, whatever its shape."""
    return [_after_forward(block, partial(_see_output, see)) for block in decoder_layers(model)]


def _see_output(see: Callable[[Tensor], None], _module: nn.Module, _args: Any, output: Any) -> None:
    see(first_tensor(output))


def inside_first_block(model: nn.Module, see: Callable[[], None]) -> list[RemovableHandle]:
    """Call `see` as each part of the first block begins to run: where a checkpoint of the block is entered already."""
    first = next(iter(decoder_layers(model)), nn.Module())
    return [_before_forward(part, partial(_see, see)) for part in first.children()]


def _see(see: Callable[[], None], _module: nn.Module, _args: Any) -> None:
    see()


def edit_input(module: nn.Module, edit: Edit) -> RemovableHandle:
    """Put `edit(h)` in place of the hidden states `h` that a module is called with; None leaves them."""
    return _before_forward(module, partial(_edit_input, edit), with_kwargs=True)


def _edit_input(edit: Edit, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    edited = edit(args[0] if args else kwargs["hidden_states"])
    return None if edited is None else with_hidden_states(args, kwargs, edited)


class _Look(_Hook):
    """A hook that changes nothing."""


def see_input(module: nn.Module, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Show `see` the hidden states that a module is called with, ahead of whatever edits them."""
    look = _Look(partial(_see_input, see))
    return module.register_forward_pre_hook(look, with_kwargs=True, prepend=True)


def _see_input(
    see: Callable[[Tensor], None], _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    see(args[0] if args else kwargs["hidden_states"])


def hung_on(module: nn.Module) -> int:
    """How many hooks, anyone's, the module and what is in it have in either pass, but those of `see_input`."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    every = (hook for part in module.modules() for kind in kinds for hook in getattr(part, kind).values())
    return sum(not isinstance(hook, _Look) for hook in every)


def edit_linear(linear: nn.Module, edit: Callable[[Tensor, Tensor], Tensor]) -> RemovableHandle:
    """Put `edit(x, y)` in place of the output `y` of a module of one input `x`."""
    return _after_forward(linear, lambda _module, args, y: edit(args[0], y))


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
    """Call `before(module, args, kwargs)` ahead of every call of one module and `after(module, args, output)` behind it.

    `before` may return `(args, kwargs)` to replace them. Of a whole model's passes, `around_pass` misses none.
    """
    handles = []
    if before is not None:
        handles.append(_before_forward(module, before, with_kwargs=True))
    if after is not None:
        handles.append(_after_forward(module, after))
    return handles


def without_columns(model: nn.Module, columns: Collection[str]) -> list[RemovableHandle]:
    """Take named columns out of what a model is called with."""
    return around_forward(model, before=partial(_drop, frozenset(columns)))


def _drop(columns: frozenset[str], _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args, {name: value for name, value in kwargs.items() if name not in columns}


def around_pass(
    model: nn.Module, before: Callable[..., Any] | None = None, after: Callable[..., None] | None = None
) -> list[RemovableHandle]:
    """Call `before(module, args, kwargs)` ahead of every forward pass and `after(module, args, output)` behind it.

    A pass is seen once, by whichever module it enters: a trainer calls the model that it was given, PEFT's `generate`
    calls the model inside the wrapper, and some losses call the decoder alone. `before` may return `(args, kwargs)` to
    replace them. A pass that raises has no `after`.
    """
    entrance = _Entrance(before, after)
    handles = []
    for module in dict.fromkeys([model, base_model(model), block_runner(model)]):
        handles.append(_before_forward(module, entrance.enter, with_kwargs=True))
        handles.append(_after_forward(module, entrance.leave, always_call=True))
    return handles


class _Entrance:
    """Tells the outermost call of a pass from the calls inside it."""

    def __init__(self, before: Callable[..., Any] | None, after: Callable[..., None] | None) -> None:
        self._before, self._after = before, after
        self._outermost: nn.Module | None = None

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The same module again: the pass before was cut short where no hook could see it.
        inside = self._outermost is not None and self._outermost is not module
        if inside or replaying():
            return None
        self._outermost = module
        return None if self._before is None else self._before(module, args, kwargs)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._outermost is not module or replaying():
            return
        self._outermost = None
        if output is not None and self._after is not None:  # None: torch calls this after an exception too
            self._after(module, args, output)


@runtime_checkable
class Handle(Protocol):
    """What takes an edit away again."""

    def remove(self) -> None: ...


class _Replaced:
    """A method replaced on one object."""

    def __init__(self, owner: nn.Module, method: str, replacement: Callable[..., Any]) -> None:
        self._owner, self._method = owner, method
        # What somebody else had put on the object itself (Unsloth does), and not on its class.
        self._before = owner.__dict__.get(method)
        owner.__dict__[method] = replacement

    def remove(self) -> None:
        if self._before is None:
            self._owner.__dict__.pop(self._method, None)
        else:
            self._owner.__dict__[self._method] = self._before


def around_generation(model: nn.Module, before: Callable[[], None], after: Callable[[], None]) -> list[Handle]:
    """Call `before()` and `after()` around every `generate` of a Hugging Face model, also through its PEFT wrapper."""
    inner = base_model(model)
    handles: list[Handle] = []
    for method in ("generate", "generate_batch"):
        original = getattr(inner, method, None)  # theirs: older versions have no generate_batch
        if original is not None:
            handles.append(_Replaced(inner, method, _Bracketed(original, before, after)))
    return handles


class _Bracketed:
    """A model's method with something done before and after it; on a copy of the model, the copy's own method."""

    def __init__(self, original: Callable[..., Any], before: Callable[[], None], after: Callable[[], None]) -> None:
        self._original, self._before, self._after = original, before, after
        update_wrapper(self, original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._before()
        try:
            return self._original(*args, **kwargs)
        finally:
            self._after()

    # `copy` and `pickle` both bind a bound method anew, to what they make of its model.
    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self._original,)


def _itself(value: Any) -> Any:
    return value


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
