"""A report of 9 runs × 200 responses: its size, how long it takes to draw, and how long Chromium takes to open it.

The runs are made up (`tests/fake_runs.py`). Without Chromium or playwright the opening is not measured, and said so.
"""

import importlib.util
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tropism import reports

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


def run() -> dict[str, float | str]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    fake_runs = importlib.import_module("fake_runs")
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
    print(json.dumps(run(), indent=1))
