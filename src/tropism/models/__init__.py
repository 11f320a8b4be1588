"""Models by hub name, local folder, or the copy of SmolLM2 that a Python package carries where the hub is out of reach.

`load` says which source it took: the 4-bit copy is not the published model to the last digit.
"""

from tropism.models.devices import Device, computes_bfloat16, pick_device, pick_dtype
from tropism.models.loading import (
    context_length,
    is_quantized,
    load,
    load_adapter,
    load_config,
    load_source,
    load_tokenizer,
    skeleton,
)
from tropism.models.options import Loading
from tropism.models.places import SMOLLM2, cache_folder, hub_token
from tropism.models.sources import Source, resolve, resolve_adapter

__all__ = [
    "SMOLLM2",
    "Device",
    "Loading",
    "Source",
    "cache_folder",
    "computes_bfloat16",
    "context_length",
    "hub_token",
    "is_quantized",
    "load",
    "load_adapter",
    "load_config",
    "load_source",
    "load_tokenizer",
    "pick_device",
    "pick_dtype",
    "resolve",
    "resolve_adapter",
    "skeleton",
]
