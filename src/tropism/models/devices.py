"""On which device, and in which dtype, a model is held."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tropism.errors import ModelError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cuda", "mps", "cpu"]


def pick_device(device: str = "auto") -> str:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; raises `ModelError` for a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there:
        raise ModelError(f"device must be auto, cuda, mps or cpu, found {device!r}")
    if not there[kind]:
        raise ModelError(f"device {device!r} was asked for, but torch sees none here; use auto or cpu")
    return device


def computes_bfloat16(device: str) -> bool:
    """Whether the device has bfloat16 instructions (on a CPU: AVX-512 BF16 or AMX), not merely an emulation."""
    import torch

    kind = device.partition(":")[0]
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        capabilities = torch.backends.cpu.get_cpu_capability()
        flags = Path("/proc/cpuinfo")
        named = flags.read_text(encoding="utf-8") if flags.is_file() else ""
        return capabilities.startswith("AVX512") and ("avx512_bf16" in named or "amx_bf16" in named)
    return False


def pick_dtype(dtype: str, device: str) -> "torch.dtype":
    """`auto` is bfloat16 on an accelerator that computes in it, else float32.

    On a CPU the weights stay float32 also where it has bfloat16 instructions: training uses those through autocast,
    and evaluation keeps full precision.
    """
    import torch

    if dtype == "auto":
        return torch.bfloat16 if not device.startswith("cpu") and computes_bfloat16(device) else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ModelError(f"dtype must be auto, {', '.join(known)}, found {dtype!r}")
    return known[dtype]
