"""A report of 9 runs × 200 responses: its size, how long it takes to draw, and how long Chromium takes to open it.

The runs are made up (`tests/fake_runs.py`). Without Chromium or playwright the opening is not measured, and said so.
`python -m benchmarks.bench_report large` takes 100 conditions × 5 seeds × 500 responses, and times the statistics apart.
"""

import importlib.util
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tropism import reports
from tropism.results.folder import load
from tropism.results.summary import summary_table

PROMPTS, OPENINGS = 100, 5


def opening_s(page: Path) -> float | str:
    chromium = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
    if chromium is None or importlib.util.find_spec("playwright") is None:
        return "not measured: Chromium or playwright is not installed"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        taken = []
        for _ in range(OPENINGS):
            opened = browser.new_page()
            began = time.perf_counter()
            opened.goto(page.as_uri(), wait_until="load")
            taken.append(time.perf_counter() - began)
            opened.close()
        browser.close()
    return round(statistics.median(taken), 2)


def _fake_runs() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    return importlib.import_module("fake_runs")


def large() -> dict[str, float | str]:
    """What `run` gives, of 500 runs of 500 responses; and the time of the statistics alone."""
    fake_runs = _fake_runs()
    kinds = [name for name in fake_runs.CAPS if name != "baseline"]
    for number in range(99):
        kind = kinds[number % len(kinds)]
        fake_runs.CAPS[f"c{number}"], fake_runs.GUARDS[f"c{number}"] = fake_runs.CAPS[kind], fake_runs.GUARDS[kind]
    conditions = ("baseline", *(f"c{number}" for number in range(99)))
    with tempfile.TemporaryDirectory() as folder:
        path = fake_runs.caps(Path(folder) / "caps", prompts=250, conditions=conditions, seeds=range(5))
        began = time.perf_counter()
        read = load(path)
        scores = read.scores
        loaded = time.perf_counter()
        summary_table(read.results, read.experiment, scores, read.look)
        summarised = time.perf_counter()
        page = reports.build(path)
        return {
            "runs": 500,
            "responses": 250_000,
            "megabytes": round(page.stat().st_size / 1e6, 2),
            "build_s": round(time.perf_counter() - summarised, 1),
            "reading_s": round(loaded - began, 1),
            "statistics_s": round(summarised - loaded, 1),
            "open_in_chromium_s": opening_s(page),
        }


def run() -> dict[str, float | str]:
    fake_runs = _fake_runs()
    with tempfile.TemporaryDirectory() as folder:
        # two evaluation sets of 100 prompts: 200 responses a run
        path = fake_runs.caps(Path(folder) / "caps", prompts=PROMPTS, conditions=("baseline", "caft", "plain"))
        began = time.perf_counter()
        page = reports.build(path)
        built = time.perf_counter() - began
        return {
            "runs": 9,
            "megabytes": round(page.stat().st_size / 1e6, 2),
            "build_s": round(built, 1),
            "open_in_chromium_s": opening_s(page),
        }


if __name__ == "__main__":
    print(json.dumps(large() if "large" in sys.argv else run(), indent=1))
