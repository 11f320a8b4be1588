"""`python -m benchmarks`: every `bench_*.py` in turn, one JSON object. Figures are ratios against a named other side."""

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    wanted = sys.argv[1:]
    figures = {}
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        name = path.stem.removeprefix("bench_")
        if wanted and name not in wanted:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures[name] = importlib.import_module(f"benchmarks.{path.stem}").run()
    print(json.dumps(figures, indent=1))


main()
