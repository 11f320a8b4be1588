"""What an experiment ran on: versions, device, model and data, without a path or a secret of the machine."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tropism.experiments.store import Folder

PACKAGES = ("tropism", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "safetensors")


def describe(device: str, source: Mapping[str, Any], data: Mapping[str, str], command: str = "") -> dict[str, Any]:
    """The content of `environment.json`."""
    import torch

    from tropism import models

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "platform": platform.system(),
        "device": {"kind": device, "name": name, "bfloat16": models.computes_bfloat16(device), "cores": os.cpu_count(),
                   "threads": torch.get_num_threads()},
        "model": dict(source),
        "data": dict(data),
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def finish(folder: Folder) -> None:
    """Add when the last run ended."""
    held = json.loads((folder.path / "environment.json").read_text(encoding="utf-8"))
    folder.write("environment.json", dump({**held, "finished": datetime.now(UTC).isoformat(timespec="seconds")}))


def dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, default=str)
