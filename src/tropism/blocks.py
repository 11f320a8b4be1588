"""Which parts of a block compute what it adds to the residual stream: proposed by name, verified by running the model.

A name proves nothing: a multiplier, a norm after the sum, a third branch or a parallel mixer make `self_attn` something
else than what attention adds. So a site `attn_out` or `mlp_out` is used only where, in a probe pass of this very model,

    resid_pre + attn_out + mlp_out = resid_post        (one of the two in blocks of one branch, such as Mamba's)

holds with the parts' outputs edited: what is read is what the stream receives, and an edit of it lands.
"""

import copy
import inspect
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from tropism.errors import ModelError, SiteError
from tropism.site import base_model, decoder_layers

ROUNDINGS = 8
"""The sum may be off by this many roundings of the coarsest dtype involved, relative to what the block adds: `8·eps`, that
is 0.06 in bfloat16, 0.008 in float16, 1e-6 in float32, 2e-15 in float64. The probe gives each block an input of the size
of what the block adds, so that no dtype is too coarse to tell a branch, and none is too small beside the stream."""

_ROWS, _TOKENS = 2, 5

# Proposals by name: who mixes tokens, and who works on each token alone. The probe decides.
_MIXER = re.compile(r"att|mixer|mamba|ssm|conv|temporal|recurrent|lstm|delta")
_CHANNEL = re.compile(r"mlp|ffn|^ff|feed_?forward|moe|expert|^fc|dense|^output")
_CHANNEL_CLASS = re.compile(r"MLP|M[oO]E|FeedForward|FFN")

_INFRASTRUCTURE = frozenset({"torch", "accelerate", "transformers", "peft", "bitsandbytes"})
"""Libraries whose hooks move weights and cast inputs: without them a pass may not run. All other hooks rest in a probe."""


@dataclass(frozen=True)
class Branches:
    """What a probe found of one block: the two parts that add to the stream, or those that come nearest to it."""

    attn_out: str | None
    mlp_out: str | None
    residual: float
    """`‖resid_post − resid_pre − attn_out − mlp_out‖ / ‖attn_out + mlp_out‖`."""
    allowed: float

    def __str__(self) -> str:
        return " and ".join(part for part in (self.attn_out, self.mlp_out) if part is not None) or "none"


def branch(model: nn.Module, layer: int, stream: str) -> nn.Module:
    """The part of a block whose output is `attn_out` or `mlp_out`; `attn_out` is the token mixer, whatever it is.

    The first question about a model runs it twice on ten tokens, in evaluation mode, without gradients, and with no hooks
    but those of libraries that move weights; modes, hooks and random state are afterwards as they were. The answer is
    kept for this model, not for its class: a gate that is 1 in one checkpoint is not in the next. Raises `SiteError`
    where the sum does not hold, with the residual found, and where the model cannot be run (weights on `meta`).
    """
    block = decoder_layers(model)[layer]
    site, kind = f"{stream}.{layer}", type(block).__name__
    proposed = [*_proposed(block, "attn_out"), *_proposed(block, "mlp_out")]
    if not (_proposed(block, stream) if stream == "mlp_out" else proposed):
        children = ", ".join(name for name, _ in block.named_children())
        raise SiteError(f"{site}: {kind} has no submodule that computes it (it has: {children})")
    found = _branches(model, site)[layer]
    if not found.residual <= found.allowed:
        raise SiteError(
            f"{site} is refused: what {kind} adds to the stream is not the sum of two of its parts (the nearest, {found}, "
            f"leave a relative residual of {found.residual:.2g}, allowed {found.allowed:.1g}), as where branches are "
            "multiplied, normed after the sum, or more than two; use resid_pre or resid_post"
        )
    path = found.attn_out if stream == "attn_out" else found.mlp_out
    if path is None:
        other = "mlp_out" if stream == "attn_out" else "attn_out"
        raise SiteError(f"{site}: {kind} has one branch, {found}, which is its {other}")
    return block.get_submodule(path)


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


def with_hidden_states(
    args: tuple[Any, ...], kwargs: dict[str, Any], h: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A module's arguments with `h` in place of the hidden states, which come first or by name."""
    return ((h, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": h})


def hidden_states_offset(config: Any) -> int:
    """Return which entry of `hidden_states` block 0's output is: 1 in most models, 0 in Mamba's kind, where none is the input.

    Found by running a model of the configuration on `meta`, without weights or arithmetic, and by looking which entry
    *is* the tensor that a block returned; every block but the last must agree (behind it, transformers may norm first).
    Raises `ModelError` where it cannot be told.
    """
    from transformers import AutoModelForCausalLM

    of_config: Any = AutoModelForCausalLM.from_config
    try:
        with torch.device("meta"):
            # In bfloat16, the one dtype that grouped experts have on meta.
            how: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.bfloat16}
            model: Any = of_config(copy.deepcopy(config), **how).eval()
            returned: list[Tensor] = []
            for block in decoder_layers(model):
                block.register_forward_hook(lambda _module, _args, output: returned.append(first_tensor(output)))
            ids = torch.zeros((1, _TOKENS), dtype=torch.long)
            # With a mask: without one, transformers looks into the positions for packed rows, which have no values here.
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
            with torch.no_grad(), _Answered():
                states = model(**_taken(model, given), output_hidden_states=True).hidden_states
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:150]}"
        raise ModelError(f"{_UNTOLD} ({said}); {_SAY}") from error
    entries = [index for index, state in enumerate(states) if state is returned[0]]
    agree = entries and all(states[entries[0] + layer] is returned[layer] for layer in range(len(returned) - 1))
    if not agree:
        raise ModelError(f"{_UNTOLD} (no entry is what a block returns); {_SAY}")
    return entries[0]


class _Answered(TorchFunctionMode):
    """Answers yes where a model on `meta` asks a tensor for its value: whether every token is attended, say."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.Tensor.item, torch.Tensor.__bool__) and args[0].is_meta:
            return True
        return function(*args, **(kwargs or {}))


_UNTOLD = "which entry of hidden_states is which block's output could not be told for this model"
_SAY = "number the layers by blocks, and say so with Reading.indexing='blocks' (--indexing blocks)"


def rows_mixed(model: nn.Module, modules: Mapping[str, Any]) -> dict[str, str]:
    """The modules at whose input the rows of a batch cannot be told apart, with the reason: where experts regroup tokens.

    Found by two passes over two rows of which one is changed: at a module that sees `[B, T, d]` or `[B·T, d]` in order,
    the other row's input stays as it was. Raises `SiteError` where the model cannot be run on tokens alone.
    """
    inner = base_model(model)
    seen: list[dict[str, list[Tensor]]] = []
    with untouched(inner), quiet_hooks(inner):
        for step in (0, 1):
            inputs: dict[str, list[Tensor]] = {name: [] for name in modules}
            handles = [m.register_forward_pre_hook(partial(_keep_input, inputs[name])) for name, m in modules.items()]
            batch = probe_inputs(inner)
            batch["input_ids"][1] += step
            try:
                inner(**batch)
            except Exception as error:
                raise SiteError(f"{type(inner).__name__} cannot be run on ten tokens: {error}") from error
            finally:
                for handle in handles:
                    handle.remove()
            seen.append(inputs)
    return {name: why for name in modules if (why := _mixed(seen[0][name], seen[1][name])) is not None}


def _keep_input(kept: list[Tensor], _module: nn.Module, args: tuple[Any, ...]) -> None:
    kept.append(args[0].detach().clone())


def _mixed(first: list[Tensor], second: list[Tensor]) -> str | None:
    """Why one row's positions cannot be told from the other's, over all calls of a module; None where they can."""
    for x, again in zip(first, second, strict=False):
        flat = x.dim() == 2 and x.shape[0] == _ROWS * _TOKENS
        # Latent attention expands its keys as [B, 1, T, d].
        by_head = x.dim() == 4 and x.shape[0] == _ROWS and _TOKENS in x.shape[1:3]
        if not (flat or by_head or (x.dim() == 3 and x.shape[0] == _ROWS)):
            return f"it sees {list(x.shape)} where a batch has [{_ROWS}, {_TOKENS}, d]"
        half = x.shape[0] // 2
        if x.shape != again.shape or not torch.allclose(x[:half].float(), again[:half].float(), rtol=1e-2, atol=1e-4):
            return "it sees one row's tokens in another's place"
    return None if len(first) == len(second) else "it runs or not as tokens are sent to it"


# --- what is proposed ---


def _proposed(block: nn.Module, stream: str) -> list[str]:
    """Names of the parts that may compute a stream, outermost first; adapters' inner modules and dropout are none."""
    named = [
        (path, module)
        for path, module in block.named_modules()
        if path and not isinstance(module, nn.Dropout) and "lora_" not in path and "base_layer" not in path
    ]
    chosen = [path for path, module in named if _is_channel(path, module) == (stream == "mlp_out")]
    return sorted(chosen, key=lambda path: path.count("."))


def _is_channel(path: str, module: nn.Module) -> bool | None:
    """Whether a part works on each token alone (an MLP) or mixes tokens; None where its name says neither."""
    child = path.partition(".")[0]
    if path == child and _CHANNEL_CLASS.search(type(module).__name__):
        return True  # Nemotron-H calls each branch `mixer`
    if _MIXER.search(child):
        return False
    return True if _CHANNEL.search(child) else None


# --- the two passes ---


_FOUND: WeakKeyDictionary[nn.Module, list[Branches]] = WeakKeyDictionary()


def _branches(model: nn.Module, site: str) -> list[Branches]:
    inner = base_model(model)
    if inner not in _FOUND:
        _FOUND[inner] = _probe(model, site)
    return _FOUND[inner]


class _Seen:
    """One block in a pass: what goes in, what its parts return, what comes out; and what is put in their place."""

    def __init__(self, block: nn.Module, parts: Sequence[str]) -> None:
        self.block, self.parts = block, parts
        self.pre = self.post = torch.empty(0)
        self.outputs: dict[str, Tensor] = {}
        self.calls = 0
        self.start: Tensor | None = None
        """What the block is given in place of its input."""
        self.like: _Seen | None = None
        """A block before it, whose input it is given."""
        self.edited: tuple[str, ...] = ()
        """Parts to whose output a rotated copy of it is added."""

    def handles(self) -> Iterator[RemovableHandle]:
        yield self.block.register_forward_pre_hook(self._before, with_kwargs=True)
        yield self.block.register_forward_hook(self._after)
        for path in self.parts:
            yield self.block.get_submodule(path).register_forward_hook(partial(self._part, path))

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        self.pre = args[0] if args else kwargs["hidden_states"]
        if self.like is not None:
            self.start = self.like.pre
        if self.start is None:
            return None
        self.pre = self.start.to(self.pre)
        # A copy: some blocks add to their input in place.
        return with_hidden_states(args, kwargs, self.pre.clone())

    def _part(self, path: str, _module: nn.Module, _args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(h, Tensor) or h.numel() != self.pre.numel() or h.shape[-1] != self.pre.shape[-1]:
            return None
        if path in self.edited:
            h = h + h.roll(1, dims=-1)
        self.outputs[path] = h.clone()  # Falcon adds to its MLP's output in place
        return with_first_tensor(output, h) if path in self.edited else None

    def _after(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.post = first_tensor(output).clone()

    def added(self) -> Tensor:
        return wide(self.post) - wide(self.pre)

    def residual(self, paths: Sequence[str]) -> float:
        """How far the parts are from what the block adds, relative to them; infinite where one did not run."""
        if self.calls != 1 or self.post.shape != self.pre.shape or any(path not in self.outputs for path in paths):
            return float("inf")
        total = torch.stack([wide(self.outputs[path]).reshape(self.pre.shape) for path in paths]).sum(dim=0)
        ratio = float((self.added() - total).norm() / total.norm())
        return ratio if ratio == ratio else float("inf")

    def allowed(self) -> float:
        """`ROUNDINGS · eps` of the coarsest dtype among stream and parts."""
        dtypes = {self.post.dtype, self.pre.dtype, *(h.dtype for h in self.outputs.values())}
        return ROUNDINGS * max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)


def wide(h: Tensor) -> Tensor:
    """On the CPU in float64, in which sums of the model's own numbers are exact enough to be compared."""
    return h.detach().cpu().double()


def _probe(model: nn.Module, site: str) -> list[Branches]:
    blocks = list(decoder_layers(model))
    parts = [[*_proposed(block, "attn_out"), *_proposed(block, "mlp_out")] for block in blocks]
    first = [_Seen(block, inside) for block, inside in zip(blocks, parts, strict=True)]
    # The stream of a deep block can be too large to see a branch beside it: each is given what the first block is.
    for seen in first[1:]:
        seen.like = first[0]
    _run(model, first, site)
    nearest = [_nearest(seen) for seen in first]
    # Again, with an input of the size of what the block adds, and with the parts' outputs edited.
    second = [_Seen(block, [p for p in pair if p]) for block, pair in zip(blocks, nearest, strict=True)]
    for before, now in zip(first, second, strict=True):
        size, whole = before.added().norm(), wide(first[0].pre)
        now.start = whole * (size / whole.norm()) if size > 0 and whole.norm() > 0 else whole
        now.edited = tuple(now.parts)
    _run(model, second, site)
    return [
        Branches(*pair, seen.residual(seen.parts) if seen.parts else float("inf"), seen.allowed())
        for pair, seen in zip(nearest, second, strict=True)
    ]


def _nearest(seen: _Seen) -> tuple[str | None, str | None]:
    """The pair of parts, or the one part, that is nearest to what the block adds; the outermost of equals."""
    mixers = [path for path in _proposed(seen.block, "attn_out") if path in seen.outputs]
    channels = [path for path in _proposed(seen.block, "mlp_out") if path in seen.outputs]
    pairs: list[tuple[str | None, str | None]] = [
        (a, m) for a in mixers for m in channels if not (a.startswith(f"{m}.") or m.startswith(f"{a}."))
    ]
    pairs += [(a, None) for a in mixers] + [(None, m) for m in channels]
    best: tuple[str | None, str | None] = (None, None)
    least = float("inf")
    for pair in pairs:
        residual = seen.residual([path for path in pair if path is not None])
        # A tenth less, not a rounding less: `attn` and its own last linear differ by nothing.
        if residual < 0.9 * least and least > seen.allowed():
            best, least = pair, residual
    return best


# --- running a model without leaving a trace ---


def _run(model: nn.Module, seen: Sequence[_Seen], site: str) -> None:
    """One pass on ten tokens, with what each block does looked at; whatever ends it becomes a `SiteError`."""
    inner = base_model(model)
    with untouched(inner), quiet_hooks(inner), ExitStack() as stack:
        for one in seen:
            for handle in one.handles():
                stack.callback(handle.remove)
        try:
            inner(**probe_inputs(inner))
        except Exception as error:
            said = str(error).strip().partition("\n")[0][:200]
            raise SiteError(
                f"{site} must be verified by running {type(inner).__name__} on ten tokens, which ended in "
                f"{type(error).__name__}: {said}; use resid_pre or resid_post, which need no probe"
            ) from error


def probe_inputs(inner: Any) -> dict[str, Any]:
    """A few tokens that the model is run on to find out what it does."""
    embeddings = inner.get_input_embeddings().weight
    if embeddings.device.type == "meta" and not any(hasattr(module, "_hf_hook") for module in inner.modules()):
        raise ModelError("its weights are on the meta device, without values: load them first")
    device = "cpu" if embeddings.device.type == "meta" else embeddings.device  # offloaded: accelerate moves the ids
    ids = torch.arange(_ROWS * _TOKENS, device=device).reshape(_ROWS, _TOKENS) + 3
    given = {"input_ids": ids % embeddings.shape[0], "attention_mask": torch.ones_like(ids), "use_cache": False}
    return _taken(inner, given)


def _taken(model: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the model's forward pass takes."""
    names = inspect.signature(model.forward).parameters
    return {name: value for name, value in given.items() if name in names or "kwargs" in names}


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; afterwards modes and random state are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # BigBird draws its blocks from NumPy's
    devices: dict[str, set[int]] = {}
    for parameter in model.parameters():
        if parameter.device.type not in ("cpu", "meta"):
            devices.setdefault(parameter.device.type, set()).add(parameter.device.index or 0)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, indices in devices.items():
            stack.enter_context(torch.random.fork_rng(devices=sorted(indices), device_type=kind))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_autocast_where_mixed(model))
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _autocast_where_mixed(model: nn.Module) -> torch.autocast:
    """Autocast as a trainer would have it on, where a model mixes half and full precision; else off."""
    dtypes = {(p.device.type, p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize > 1}
    half = sorted((pair for pair in dtypes if pair[1] in (torch.bfloat16, torch.float16)), key=str)
    kind, dtype = half[0] if half else ("cpu", torch.bfloat16)
    return torch.autocast(kind if kind != "meta" else "cpu", dtype=dtype, enabled=bool(half) and len(dtypes) > 1)


@contextmanager
def quiet_hooks(model: nn.Module) -> Iterator[None]:
    """No hook of a guard or a person runs inside; those that move weights do."""
    kept: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            resting = {key: hook for key, hook in hooks.items() if _home(hook) not in _INFRASTRUCTURE}
            if resting:
                kept.append((hooks, dict(hooks)))
                for key in resting:
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, before in kept:
            added = {key: hook for key, hook in hooks.items() if key not in before}
            hooks.clear()
            hooks.update({**before, **added})


def _home(hook: Any) -> str:
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", None) or type(hook).__module__).partition(".")[0]
