"""`python -m benchmarks`: every `bench_*.py` in turn, one JSON object. Figures are ratios against a named other side.

How long each took is printed as it ends, and stands at the end of the object.
"""

import importlib
import json
import sys
import time
from pathlib import Path


def main() -> None:
    wanted = sys.argv[1:]
    figures, took = {}, {}
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        name = path.stem.removeprefix("bench_")
        if wanted and name not in wanted:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        began = time.perf_counter()
        figures[name] = importlib.import_module(f"benchmarks.{path.stem}").run()
        took[name] = round(time.perf_counter() - began)
        print(f"{name}: {took[name]} s", file=sys.stderr, flush=True)
    figures["seconds_taken"] = took
    print(json.dumps(figures, indent=1))


main()
