"""What pressure with 100 random directions costs, against one backward pass for each chat and each direction.

64 word problems on SmolLM2, 15 sites. The naive way (batches of 1; forward, backward and one dot product for every chat
and every direction) would take hours, so it is timed on a sample and scaled: 8 chats of evenly spaced lengths,
`NAIVE_DIRECTIONS` directions each, alternating with batches of the fast way; medians of both. The sample's numbers are
compared too.

Peak memory is that of a child process on a small model (on Linux), the cache in a folder, for 64 and for 1024 chats.
"""

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

import tropism as tp
from tropism.data.sources.word_problems import word_problems
from tropism.probes.random_controls import draw_random, random_pressure

CHATS, BATCH, DRAWS, NAIVE_DIRECTIONS = 64, 8, 100, 2

CHILD = """
import pathlib, sys, tempfile, torch, tropism as tp
from transformers import AutoModelForCausalLM, LlamaConfig
_, tokenizer = tp.models.load("HuggingFaceTB/SmolLM2-135M-Instruct")
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=256, intermediate_size=256, num_hidden_layers=8, num_attention_heads=4))
chats = [[{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"It is {i}."}]
         for i in range(1000, 1000 + int(sys.argv[1]))]
with tempfile.TemporaryDirectory() as folder:
    tp.collect_gradients(model, tokenizer, chats, tp.sites(model, "all"), folder=folder, per_token=True)
    written = sum(file.stat().st_size for file in pathlib.Path(folder).iterdir())
# not getrusage, whose peak a child inherits from the parent that started it
status = pathlib.Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), written // 1024)
"""


def naive(model: Any, tokenizer: Any, chat: Any, site: tp.Site, vector: torch.Tensor) -> tuple[float, float]:
    """One direction on one chat: a forward and a backward pass of transformers' own loss; pressure and seconds."""
    begin = time.perf_counter()
    row = tp.render(tokenizer, chat)
    ids = torch.tensor([row.input_ids])
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        out.requires_grad_(True)
        out.retain_grad()
        kept.append(out)
        return out

    handle = tp.decoder_layers(model)[site.layer].register_forward_hook(keep)
    model(input_ids=ids, labels=torch.where(torch.tensor([row.response_mask]), ids, -100)).loss.backward()
    handle.remove()
    assert kept[0].grad is not None
    pressure = -float(kept[0].grad[0, row.positions["response"]].mean(0) @ (vector / vector.norm()))
    return pressure, time.perf_counter() - begin


def run() -> dict[str, float | str]:
    """Speed-up over the naive way (sampled and scaled), the largest relative difference, and the growth of memory."""
    model, tokenizer = tp.models.load("HuggingFaceTB/SmolLM2-135M-Instruct", dtype="float32")
    model.requires_grad_(False)
    examples = word_problems(CHATS)
    sites = tp.sites(model, "25%..75%")
    generator = torch.Generator().manual_seed(0)
    directions = tp.Directions({site: torch.randn(model.config.hidden_size, generator=generator) for site in sites})
    lengths = [len(tp.render(tokenizer, example.chat)) for example in examples]
    rounds = CHATS // BATCH
    order = sorted(range(CHATS), key=lambda index: lengths[index])
    sampled = [order[int((i + 0.5) * CHATS / rounds)] for i in range(rounds)]
    site = sites[0]
    vectors = draw_random(directions, site, DRAWS, 0, "isotropic")[:NAIVE_DIRECTIONS]

    tp.collect_gradients(model, tokenizer, examples[:2], sites)  # first passes are slower
    slow, fast, theirs = [], [], []
    gradients = {}
    for number in range(rounds):
        begin = time.perf_counter()
        cache = tp.collect_gradients(model, tokenizer, examples[number::rounds], sites, batch_size=BATCH)
        tp.pressure(cache, directions)
        random_pressure(cache, directions, count=DRAWS)
        fast.append(time.perf_counter() - begin)
        gradients |= {name: cache.gradients[site][i] for i, name in enumerate(cache.chats)}
        for vector in vectors:
            pressure, seconds = naive(model, tokenizer, examples[sampled[number]].chat, site, vector)
            slow.append(seconds)
            theirs.append(pressure)
    ours = [-float(gradients[examples[i].id] @ (v / v.norm())) for i in sampled for v in vectors]
    difference = max(abs(one - two) for one, two in zip(ours, theirs, strict=True)) / max(map(abs, theirs))
    passes, whole = CHATS * (1 + DRAWS), statistics.median(fast) * rounds
    (few, _), (many, written) = _peak(64), _peak(1024)
    return {
        "speed_up_over_one_backward_per_chat_and_direction": statistics.median(slow) * passes / whole,
        "speed_up_over_one_backward_per_chat": statistics.median(slow) * CHATS / whole,
        "largest_difference_over_largest_pressure": difference,
        "peak_memory_of_1024_chats_over_64": many / few,
        "growth_of_peak_memory_over_size_of_cache": (many - few) / written,
        "how": f"{len(slow)} of {passes} naive passes timed (chats of {[lengths[i] for i in sampled]} tokens, "
        f"mean of all {sum(lengths) / CHATS:.0f}), {len(sites)} sites, batches of 8, {torch.get_num_threads()} threads",
    }


def _peak(chats: int) -> tuple[float, float]:
    """Peak memory of the child, and the size of the cache that it wrote, in KiB."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(chats)], check=True, capture_output=True, text=True)
    peak, written = done.stdout.split()[-2:]
    return float(peak), float(written)


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
