"""Finding directions against the forward passes it needs: time, memory, and PCA against the exact decomposition.

Run on SmolLM2 at all sites. The bare passes are the same batches through the same decoder, already padded, with nothing
read.
"""

import json
import math
import resource
import statistics
import subprocess
import sys
import time

import torch

import tropism as tp
from tropism import models
from tropism.data.collate import length_grouped, pad
from tropism.data.sources.word_problems import word_problems
from tropism.directions.finder import Window
from tropism.directions.stream import WINDOW_BATCHES
from tropism.linalg import principal_angles

BATCH, PAIRS, REPEATS = 8, 8, 3


def contrast(pairs: int) -> tp.Contrast:
    examples = word_problems(pairs)
    answers = [example.response or "" for example in examples]
    prompts = [example.prompt for example in examples]
    return tp.Contrast.of_responses(prompts, positive=[a.upper() for a in answers], negative=answers)


def time_ratio() -> dict[str, float]:
    """Median over interleaved repeats of `find_directions` over bare passes, also for PCA; processor time, so that a
    busy machine does not show."""
    model, tokenizer = models.load(models.SMOLLM2, device="cpu")
    pairs = contrast(PAIRS)
    positive, negative = pairs.render(tokenizer)
    order = sorted(range(PAIRS), key=lambda index: (-len(positive[index]), index))
    count = math.ceil(PAIRS / (WINDOW_BATCHES * BATCH))
    batches = []
    for number in range(count):
        cut = order[PAIRS * number // count : PAIRS * (number + 1) // count]
        for side in (positive, negative):
            chosen = [side[index] for index in cut]
            batches += [pad([chosen[i] for i in b], 0) for b in length_grouped([len(row) for row in chosen], BATCH)]
    decoder, sites = model.get_decoder(), tp.sites(model, "all")

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    def find(finder: object) -> None:
        tp.find_directions(model, tokenizer, pairs, sites=sites, finder=finder, batch_size=BATCH)

    arms = {"bare": bare, "mean_difference": lambda: find(tp.MeanDifference()), "pca_5": lambda: find(tp.PCA(k=5))}
    arms["bare"]()
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(REPEATS):
        for name, arm in arms.items():
            start = time.process_time()
            arm()
            taken[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return {f"{name} / bare forward passes": medians[name] / medians["bare"] for name in ("mean_difference", "pca_5")}


def memory_ratio() -> float:
    """Growth of peak memory for 8 times the chats: 1.0 is none."""
    peaks = []
    for pairs in (16, 128):
        out = subprocess.run([sys.executable, __file__, str(pairs)], capture_output=True, text=True, check=True).stdout
        peaks.append(float(out.strip().splitlines()[-1]))
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
    tp.find_directions(model, tokenizer, contrast(pairs), sites=tp.sites(model, "all"), batch_size=BATCH)
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
        "peak memory, 128 pairs / 16 pairs": memory_ratio(),
        **pca_angle(),
        "setting": f"SmolLM2-135M, {PAIRS} pairs of word problems, all sites, batch {BATCH}, median of {REPEATS}",
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(peak(int(sys.argv[1])))
    else:
        print(json.dumps(run(), indent=1))
