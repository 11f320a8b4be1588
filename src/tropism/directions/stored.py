"""How directions are stored: tensors in one safetensors file, everything else as JSON in its header. Never a pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tropism.atomic import replacing
from tropism.errors import DirectionsError


@dataclass(frozen=True)
class Kind:
    """A kind of file: its `format`, what it holds, and where a file of another kind should go."""

    format: str
    holds: str
    advice: str

    def write(self, path: str | Path, tensors: Mapping[str, Tensor], **header: Any) -> Path:
        """Write the file whole or not at all; every value of `header` is stored as JSON."""
        target = Path(path)
        held = {name: json.dumps(value, sort_keys=True, allow_nan=False) for name, value in header.items()}
        with replacing(target) as partial:
            save_file(dict(tensors), partial, metadata={"format": self.format, **held})
        return target

    def read(self, path: str | Path, *names: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors, and the objects of the header called `names`; executes nothing.

        Raises `DirectionsError` where there is no such file, it is of another kind, or a value of its header is not a
        JSON object.
        """
        source = Path(path)
        if not source.is_file():
            raise DirectionsError(f"no {self.holds} file at {source}")
        try:
            with safe_open(source, framework="pt") as file:
                metadata = file.metadata() or {}
                # Copies: what safetensors gives is mapped from the file, which Windows then lets nobody replace.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError, ValueError) as error:
            raise DirectionsError(f"{source} is not a safetensors file ({error}); {self.advice}") from None
        if metadata.get("format") != self.format:
            raise DirectionsError(
                f"{source} holds no {self.holds} (format {metadata.get('format')!r}, expected {self.format!r}); {self.advice}"
            )
        return tensors, {name: _object(source, name, metadata.get(name, "{}")) for name in names}


def format_of(path: str | Path) -> str:
    """Return what a safetensors file says its format is; empty where it says none, or is no such file."""
    try:
        with safe_open(Path(path), framework="pt") as file:
            return str((file.metadata() or {}).get("format", ""))
    except (SafetensorError, OSError, ValueError):
        return ""


def _object(source: Path, name: str, text: str) -> dict[str, Any]:
    try:
        held = json.loads(text)
    except json.JSONDecodeError as error:
        raise DirectionsError(f"{source}: its {name} is not JSON ({error})") from None
    if not isinstance(held, dict):
        raise DirectionsError(f"{source}: its {name} must be a JSON object, found {type(held).__name__}")
    return held
