"""What an experiment ran on: versions, device, model and data, without a path or a secret of the machine."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tropism.experiments.kept import read_json_object
from tropism.experiments.store import Folder
from tropism.names import VERSION

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "safetensors")


NAME = "environment.json"


def describe(
    device: str,
    source: Mapping[str, Any],
    data: Mapping[str, str],
    frozen_date: str | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Return the content of `environment.json`; `frozen_date` is there where the chat template writes a date."""
    import torch

    from tropism import models

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "versions": {
            "python": platform.python_version(),
            "tropism": VERSION,  # a checkout on the path has no metadata
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
        "platform": platform.system(),
        "device": {"kind": device, "name": name, "bfloat16": models.computes_bfloat16(device), "cores": os.cpu_count(),
                   "threads": torch.get_num_threads()},
        "model": dict(source),
        "data": dict(data),
        **({} if frozen_date is None else {"frozen_date": frozen_date}),
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def begin(folder: Folder, described: Mapping[str, Any]) -> None:
    """Write `environment.json`; a folder that is gone on with keeps when it was first started."""
    held = _held(folder)
    folder.write(NAME, dump({**described, "started": held.get("started") or described["started"]}))


def finish(folder: Folder) -> None:
    """Add when the last run ended."""
    folder.write(NAME, dump({**_held(folder), "finished": datetime.now(UTC).isoformat(timespec="seconds")}))


def _held(folder: Folder) -> Mapping[str, Any]:
    # Damaged, it is written anew: it says nothing that a run depends on.
    return read_json_object(folder.path / NAME) or {}


def dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, default=str)
