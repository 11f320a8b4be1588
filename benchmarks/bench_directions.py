"""Finding directions against the forward passes it needs: time, memory, and PCA against the exact decomposition.

Run on SmolLM2 at all sites, on GSM8K where the data is at hand: answers in capitals and as they stand. The bare passes are the
same batches through the same decoder, already padded, with nothing read. They and the finding take turns, a slice of the
chats at a time, so that neither has the quieter machine. Timed on 200 chats; `python -m benchmarks.bench_directions full` takes
1,000, and half an hour.
"""

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tropism as tp
from benchmarks.examples import examples
from tropism import models
from tropism.data.batches import batches
from tropism.data.chats import Example
from tropism.data.collate import pad
from tropism.directions.finder import Window
from tropism.directions.stream import WINDOW_BATCHES
from tropism.linalg import principal_angles

BATCH, PAIRS, TIMED, SLICE = 8, 500, 100, 50


def contrast(chosen: list[Example]) -> tp.Contrast:
    answers = [example.response or "" for example in chosen]
    prompts = [example.prompt for example in chosen]
    return tp.Contrast.of_responses(prompts, positive=[a.upper() for a in answers], negative=answers)


def time_ratio(timed_pairs: int = TIMED) -> dict[str, float | str]:
    """`find_directions` over bare passes, in processor time, so that a busy machine does not show; PCA on the first slice.

    The first slice warms up.
    """
    model, tokenizer = models.load(models.SMOLLM2, device="cpu")
    decoder, sites = model.get_decoder(), tp.sites(model, "all")
    data, chosen = examples(timed_pairs)
    taken = dict.fromkeys(("bare", "mean_difference", "bare, first slice", "pca_5"), 0.0)

    def bare(batches: list[dict[str, torch.Tensor]]) -> None:
        with torch.no_grad():
            for batch in batches:
                decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    def timed(name: str, arm: Callable[[], object]) -> None:
        start = time.process_time()
        arm()
        taken[name] += time.process_time() - start

    for number in range(timed_pairs // SLICE):
        pairs = contrast(chosen[number * SLICE : (number + 1) * SLICE])
        batches = as_batches(pairs, tokenizer)

        def find(finder: object, pairs: tp.Contrast = pairs) -> None:
            tp.find_directions(model, tokenizer, pairs, sites=sites, finder=finder, batch_size=BATCH)

        if number == 0:
            find(tp.MeanDifference())
        arms = [("bare", partial(bare, batches)), ("mean_difference", partial(find, tp.MeanDifference()))]
        for name, arm in arms[:: 1 if number % 2 else -1]:
            timed(name, arm)
        if number == 0:
            timed("pca_5", partial(find, tp.PCA(k=5)))
            timed("bare, first slice", partial(bare, batches))
    return {
        "mean_difference / bare forward passes": taken["mean_difference"] / taken["bare"],
        "pca_5 / bare forward passes": taken["pca_5"] / taken["bare, first slice"],
        "setting": f"SmolLM2-135M, {2 * timed_pairs} chats of {data} ({2 * SLICE} for PCA), all sites, batch {BATCH}",
    }


def as_batches(pairs: tp.Contrast, tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    """The batches in which `find_directions` reads them."""
    sides = pairs.render(tokenizer)
    order = sorted(range(len(pairs)), key=lambda index: (-len(sides[0][index]), index))
    count = math.ceil(len(pairs) / (WINDOW_BATCHES * BATCH))
    read = []
    for number in range(count):
        cut = order[len(pairs) * number // count : len(pairs) * (number + 1) // count]
        for side in sides:
            rows = [side[index] for index in cut]
            read += [pad(batch.rows, 0) for batch in batches(rows, BATCH)]
    return read


def memory_ratio() -> float:
    """Growth of peak memory from 120 chats to 1,000: 1.0 is none."""
    peaks = []
    for pairs in (60, PAIRS):
        command = [sys.executable, "-m", "benchmarks.bench_directions", str(pairs)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        peaks.append(float(done.stdout.strip().splitlines()[-1]))
    return peaks[1] / peaks[0]


def peak(pairs: int) -> float:
    """Peak resident memory in MiB of finding on many chats, with blocks of SmolLM2's width and few of them."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    _, tokenizer = models.load(models.SMOLLM2, device="cpu")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=576,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    model = AutoModelForCausalLM.from_config(config)
    tp.find_directions(model, tokenizer, contrast(examples(pairs)[1]), sites=tp.sites(model, "all"), batch_size=BATCH)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pca_angle() -> dict[str, float]:
    """Randomised PCA at k = 20 in width 1536: largest principal angle to the exact SVD, and the time it takes of it."""
    generator = torch.Generator().manual_seed(0)
    d, n = 1536, 1200
    spectrum = torch.arange(1, 101).float() ** -1.0
    positive = torch.randn((n, 100), generator=generator) * spectrum @ torch.randn((100, d), generator=generator)
    positive += 0.001 * torch.randn((n, d), generator=generator)
    collector = tp.PCA(k=20).collector(tp.Site(0), d, 0)
    collector.add(Window(positive, torch.zeros_like(positive), True))
    start = time.perf_counter()
    found = collector.result().vectors.double()
    ours = time.perf_counter() - start
    start = time.perf_counter()
    exact = torch.linalg.svd(positive.double(), full_matrices=False)[2][:20]
    theirs = time.perf_counter() - start
    return {
        "pca_20 largest principal angle to exact SVD": float(principal_angles(found, exact).max()),
        "pca_20 / exact SVD time": ours / theirs,
    }


def run() -> dict[str, float | str]:
    """Ratios, and what they are of."""
    return {
        **time_ratio(),
        "peak memory, 1,000 chats / 120 chats": memory_ratio(),
        **pca_angle(),
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["full"]:
        print(json.dumps(time_ratio(PAIRS), indent=1))
    elif len(sys.argv) > 1:
        print(peak(int(sys.argv[1])))
    else:
        print(json.dumps(run(), indent=1))
