"""How long a person waits for nothing: `import tropism`, `tropism --help`, a model and directions that lie on disk."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import tropism as tp
from tropism import models


def seconds(*command: str) -> float:
    times = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def run() -> dict[str, float]:
    bare = seconds("-c", "pass")
    models.load(models.SMOLLM2)
    began = time.perf_counter()
    models.load(models.SMOLLM2)
    loaded = time.perf_counter() - began
    return {
        "import_tropism_s": round(seconds("-c", "import tropism") - bare, 3),
        "help_s": round(seconds("-m", "tropism", "--help"), 3),
        "python_alone_s": round(bare, 3),
        "load_smollm2_again_s": round(loaded, 2),
        "load_directions_ms": round(1000 * _directions(), 2),
    }


def _directions() -> float:
    """Thirty sites of width 576."""
    held = tp.Directions({tp.Site(layer): torch.randn(1, 576) for layer in range(30)})
    with tempfile.TemporaryDirectory() as folder:
        file = held.save(Path(folder) / "d.safetensors")
        times = []
        for _ in range(7):
            began = time.perf_counter()
            tp.Directions.load(file)
            times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
