"""Files of other projects, read as data: `.pt`, `.npy`, `.gguf`. Nothing in them is executed."""

import pickle
import struct
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from tropism.errors import DirectionsError

_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
"""What NumPy 1 and NumPy 2 call the module that makes an array anew."""

_DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    OSError,
    struct.error,
)


def read_pt(path: Path) -> Any:
    """Return what `torch.save` wrote: tensors, NumPy arrays and plain values.

    Loads with `weights_only=True`, which refuses code, and with NumPy's own types allowed beside torch's. Raises
    `DirectionsError` for a file that holds anything else or is damaged.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_globals()):
            # Of a newer pickle protocol; what cannot be read of it raises.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DirectionsError(
            f"{path.name} holds more than tensors, or is damaged, and was not read (a pickle can run code): "
            f"{first[:160]}; save a plain dictionary of tensors with torch.save, or safetensors"
        ) from None


def _numpy_globals() -> list[Any]:
    """What a pickled array or number of NumPy is made of: arrays of numbers, and no objects."""
    multiarray = import_module(_MODULES[1])
    made = [
        (getattr(multiarray, name), f"{module}.{name}") for name in ("_reconstruct", "scalar") for module in _MODULES
    ]
    return [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in _NUMBERS), *made]


def read_npy(path: Path) -> Tensor:
    """Return a plain array as a tensor; raises `DirectionsError` for one that needs pickle, or holds no numbers."""
    try:
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(np.ascontiguousarray(array))
    except (ValueError, EOFError, OSError, TypeError, AttributeError) as error:
        raise DirectionsError(
            f"{path.name} is not a plain array ({error}); a .npy that needs pickle can run code and is never read, so "
            f"save the components as a plain array"
        ) from None


def read_gguf(path: Path) -> dict[str, Tensor]:
    """Return the tensors `direction.LAYER` of a control vector; raises `DirectionsError` where there are none."""
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise DirectionsError(f"{path.name} is not a GGUF file: {error}") from None
    tensors = {
        tensor.name: torch.from_numpy(np.array(tensor.data, dtype=np.float32))
        for tensor in reader.tensors
        if tensor.name.startswith("direction.")
    }
    if not tensors:
        raise DirectionsError(f"{path.name} is GGUF, but holds no tensor direction.LAYER: it is no control vector")
    return tensors
