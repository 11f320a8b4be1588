"""How long a person waits for nothing: `import tropism`, `tropism --help`, and a model that was loaded before."""

import json
import statistics
import subprocess
import sys
import time

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
    return {
        "import_tropism_s": round(seconds("-c", "import tropism") - bare, 3),
        "help_s": round(seconds("-m", "tropism", "--help"), 3),
        "python_alone_s": round(bare, 3),
        "load_smollm2_again_s": round(time.perf_counter() - began, 2),
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
