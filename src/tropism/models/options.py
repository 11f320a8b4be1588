"""How a model's weights are brought into memory, as a file or a caller says it, and whether this machine has what that names."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tropism.errors import ModelError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Loading:
    """How the weights are brought into memory; by default whole, on one device.

    `quantization`: `nf4` and `int8` hold the linear layers in 4 and 8 bits (bitsandbytes), of which adapters are trained in
    full precision (QLoRA). `attn_implementation`, `device_map` and `max_memory` are transformers' own.
    """

    quantization: Literal["none", "nf4", "int8"] = "none"
    attn_implementation: str | None = None
    device_map: str | dict[str, Any] | None = None
    max_memory: dict[str, str] | None = None

    def arguments(self, dtype: "torch.dtype", where: str) -> dict[str, Any]:
        """What `from_pretrained` is asked with."""
        given: dict[str, Any] = {"dtype": dtype}
        if self.attn_implementation is not None:
            given["attn_implementation"] = self.attn_implementation
        if self.max_memory is not None:
            # A GPU is a number, and the keys of a file are text.
            given["max_memory"] = {int(k) if k.isdigit() else k: room for k, room in self.max_memory.items()}
        if self.device_map is not None:
            given["device_map"] = self.device_map
        if self.quantization != "none":
            given |= {"device_map": {"": where}, **given, "quantization_config": _bits(self.quantization, dtype)}
        return given

    def check_devices(self) -> None:
        """Raise `ModelError` for a device of `device_map` or `max_memory` that this machine does not have."""
        import torch

        spread = isinstance(self.device_map, str) and self.device_map in SPREADS
        placed = self.device_map.values() if isinstance(self.device_map, dict) else [self.device_map]
        named = [("device_map", device) for device in placed if device is not None and not spread]
        named += [("max_memory", device) for device in self.max_memory or {}]
        there = ["cpu", "disk", *(str(number) for number in range(torch.accelerator.device_count()))]
        for option, device in named:
            if _number(str(device)) not in there:
                raise ModelError(
                    f"load.{option} must name devices of this machine ({', '.join(there)})"
                    f"{' or ' + ', '.join(SPREADS) if option == 'device_map' else ''}, found {str(device)!r}"
                )

    @property
    def places(self) -> bool:
        """Whether the weights are where they belong once they are loaded."""
        return self.device_map is not None or self.quantization != "none"


SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Where modules go by accelerate's own choice."""


def _number(device: str) -> str:
    """A device as `max_memory` names it: `cuda:1` is 1, `cuda` is 0, and `cpu` is itself."""
    import torch

    if device.isdigit():
        return device
    try:
        found = torch.device(device)
    except RuntimeError:  # no device has this name
        return device
    return found.type if found.type == "cpu" else str(found.index or 0)


def _bits(quantization: str, dtype: "torch.dtype") -> Any:
    import transformers

    from tropism.optional import require

    require("bitsandbytes", extra="quantization", purpose=f"load: {{quantization: {quantization}}}")
    config: Any = transformers.BitsAndBytesConfig
    if quantization == "int8":
        return config(load_in_8bit=True)
    return config(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
