"""10,000 resamples of 9 runs × 200 prompts, against resampling in a loop; ratios from one interleaved run."""

import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from tropism import stats
from tropism.stats import resampling

CONDITIONS, SEEDS, PROMPTS, RESAMPLES = 3, 3, 200, 10_000
LOOPED = 500
"""Resamples that the loop does; its time is scaled up."""


def vectorised(cells: np.ndarray) -> None:
    resampling._weights.cache_clear()
    for arm in cells:
        stats.interval(arm, resamples=RESAMPLES)


def looped(cells: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for arm in cells:
        for _ in range(LOOPED):
            drawn = arm[rng.integers(0, SEEDS, SEEDS)]
            np.mean([row[rng.integers(0, PROMPTS, PROMPTS)].mean() for row in drawn])


def timed(call: Callable[[np.ndarray], None], cells: np.ndarray) -> float:
    start = time.perf_counter()
    call(cells)
    return time.perf_counter() - start


def run() -> dict[str, float | str]:
    """Medians of five interleaved rounds."""
    cells = np.random.default_rng(1).random((CONDITIONS, SEEDS, PROMPTS))
    rounds = [(timed(vectorised, cells), timed(looped, cells) * RESAMPLES / LOOPED) for _ in range(5)]
    fast, slow = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "what": f"{RESAMPLES:,} resamples of {CONDITIONS * SEEDS} runs x {PROMPTS} prompts",
        "seconds": round(fast, 3),
        "loop_over_vectorised": round(slow / fast, 1),
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
