"""Ablation modes of a two-adapter model: which adapters act at evaluation, switched and put back bit for bit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from tropism.adapters.parts import parts_of_model, require
from tropism.errors import AttachError, GuardNotInForce
from tropism.interventions.routable import lora_layers

MODES = ("full", "forget_ablated", "retain_ablated")

_IN_MODE: WeakSet[nn.Module] = WeakSet()


@contextmanager
def ablation_mode(
    model: nn.Module,
    mode: str,
    forget_scale: float = 1.0,
    *,
    retain: str = "retain",
    forget: str = "forget",
) -> Iterator[None]:
    """The model with some adapters ablated: `W₀x + c_r·s_r B_r A_r x + c_f·s_f B_f A_f x`.

    | mode | `c_r` | `c_f` |
    |---|---|---|
    | `full` | 1 | `forget_scale` |
    | `forget_ablated` | 1 | 0 |
    | `retain_ablated` | 0 | `forget_scale` |

    Afterwards, also after an exception, the adapters' scales and every `requires_grad` are what they were; no weight is
    touched, so logits come back bit for bit. (PEFT's own `disable_adapter()` unfreezes adapters as it leaves.)

    Raises:
        AttachError: an unknown mode, a scale outside [0, 1], an adapter that is absent, merged or not active (so that
            the mode would change nothing) or does more than a scale of zero would take away, or a mode inside another.

    >>> with tp.ablation_mode(model, "forget_ablated"):  # doctest: +SKIP
    ...     logits = model(**batch).logits
    """
    if mode not in MODES:
        raise AttachError(f"ablation_mode: mode must be one of {', '.join(MODES)}, found {mode!r}")
    if not 0 <= forget_scale <= 1:
        raise AttachError(f"ablation_mode: forget_scale must lie in [0, 1], found {forget_scale!r}")
    if mode == "forget_ablated" and forget_scale != 1:
        raise AttachError(f"ablation_mode: forget_ablated has no forget adapter to scale, found {forget_scale=}")
    if model in _IN_MODE:
        raise AttachError("ablation_mode: this model is in an ablation mode already; leave it before entering another")
    factors = {
        retain: 0.0 if mode == "retain_ablated" else 1.0,
        forget: 0.0 if mode == "forget_ablated" else forget_scale,
    }
    layers = [layer for _, layer in lora_layers(model)]
    for adapter in factors:
        _check_live(layers, adapter)
    require("ablate", parts_of_model(model, list(factors)), "ablation_mode", AttachError)
    scales = [dict(layer.scaling) for layer in layers]
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    _IN_MODE.add(model)
    try:
        for layer in layers:
            for adapter, factor in factors.items():
                # A factor of 1 is left alone, so that `full` is the model as it is.
                if adapter in layer.scaling and factor != 1:
                    layer.scaling[adapter] *= factor
        yield
    finally:
        _IN_MODE.discard(model)
        for layer, before in zip(layers, scales, strict=True):
            layer.scaling.update(before)
        for name, parameter in model.named_parameters():
            if name in flags:
                parameter.requires_grad_(flags[name])


def verify_mode(
    model: nn.Module, batch: Mapping[str, Any], mode: str, *, retain: str = "retain", forget: str = "forget"
) -> float:
    """The largest change of a logit of `batch` that the mode makes; `GuardNotInForce` if it makes none.

    Also checks that leaving the mode restores the logits bit for bit. The model is run in evaluation mode.
    """
    if mode == "full":
        raise AttachError(
            "verify_mode: mode must be forget_ablated or retain_ablated, found 'full', which ablates nothing"
        )
    training = model.training
    model.eval()
    try:
        before = _logits(model, batch)
        with ablation_mode(model, mode, retain=retain, forget=forget):
            inside = _logits(model, batch)
        after = _logits(model, batch)
    finally:
        model.train(training)
    if not torch.equal(before, after):
        raise GuardNotInForce(f"ablation mode {mode} did not restore the logits; something else changed the model")
    change = float((inside - before).abs().max())
    if change == 0:
        adapter = forget if mode == "forget_ablated" else retain
        raise GuardNotInForce(
            f"ablation mode {mode} changes no logit: adapter {adapter!r} adds nothing to this model (untrained, or its "
            f"tensors were not loaded), so ablating it looks like perfect removal"
        )
    return change


def _logits(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**batch).logits
    return logits


def _check_live(layers: list[Any], adapter: str) -> None:
    having = [layer for layer in layers if adapter in layer.scaling]
    if not having:
        found = sorted({name for layer in layers for name in layer.scaling})
        raise AttachError(
            f"ablation_mode: the model must have a LoRA adapter {adapter!r}, found "
            f"{', '.join(map(repr, found)) or 'no adapter'}"
        )
    for layer in having:
        if layer.merged:
            raise AttachError(
                "ablation_mode: adapters are merged into the weights, so scales have no effect; unmerge first"
            )
        if layer.disable_adapters or adapter not in layer.active_adapters:
            raise AttachError(
                f"ablation_mode: adapter {adapter!r} must be active, found active {layer.active_adapters}"
                f"{' and adapters disabled' if layer.disable_adapters else ''}; call "
                f"model.base_model.set_adapter([...])"
            )
