"""Merge one level of an experiment file over another: `quick:`, `--set`, and what a condition changes."""

from typing import Any

_ONE_OF = {"epochs": "max_steps", "max_steps": "epochs"}
"""The two ways to give the length of a fine-tune: whoever sets one replaces the other."""


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return nested mappings merged, `over` winning; anything but a mapping is replaced whole.

    Setting `max_steps` drops an `epochs` from below, and the other way round: the two say the same thing, and whoever
    overrides one means the other no longer.

    >>> merge({"train": {"epochs": 2, "batch_size": 8}}, {"train": {"max_steps": 10}})
    {'train': {'batch_size': 8, 'max_steps': 10}}
    """
    merged = dict(under)
    for name, other in _ONE_OF.items():
        if over.get(name) is not None and over.get(other) is None:
            merged.pop(other, None)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """Return the mapping that a dotted key stands for.

    >>> nested("train.lora.r", 8)
    {'train': {'lora': {'r': 8}}}
    """
    head, _, rest = dotted.partition(".")
    return {head: nested(rest, value) if rest else value}
