"""How time grows: a training step with tokens, LoRA rank and guarded sites; pressure with random directions and cached rows.

Each curve has four points, timed in turn in rounds. A line is fitted to log time over log size in each round, and its slope is
the exponent: the median of the rounds, between the lowest and the highest. Beside it stands the slope that theory gives at the
same points: that of the multiplications in matrix products, which torch counts while the point runs once. So a term that does
not grow is in both: the step at rank 8 is hardly shorter than at rank 32, since the frozen weights are multiplied as well.

The model is a random Llama of four blocks of width 512, so that nothing is loaded. It is large enough that a step is matrix
products and not the calls around them: `gflop_per_s` says what each point reaches, to be read beside `limit`.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import peft
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import tropism as tp
from benchmarks.ratios import spread
from tropism.probes.gradient_cache import GradientCache, in_memory
from tropism.probes.random_controls import random_pressure
from tropism.training.loss import SUPERVISED, SupervisedLoss

ROUNDS = 5
WIDTH, BLOCKS, VOCABULARY, TOKENS_A_ROW = 512, 4, 4096, 128
ROWS = (2, 4, 8, 16)
RANKS = (8, 32, 128, 512)
SITES = (1, 2, 3, 4)
DRAWS = (250, 500, 1000, 2000)
CACHED = (2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class Point:
    """One point of a curve: `call` does the work once, inside `ready`."""

    size: int
    call: Callable[[], object]
    ready: Callable[[], AbstractContextManager[Any]] = nullcontext
    warm_ups: int = 0
    """Calls before the timed one."""


def run() -> dict[str, object]:
    """For each curve: the points, seconds, GFLOP/s, and the exponents of time and of multiplications."""
    model = _model()
    device = str(model.device)
    curves = {
        "step time over tokens": [_step(model, rows * TOKENS_A_ROW, rows=rows) for rows in ROWS],
        "step time over LoRA rank": [_step(model, rank, rank=rank) for rank in RANKS],
        "step time over guarded sites": [_guarded(model, count) for count in SITES],
        "pressure over random directions": [_pressure(draws, draws=draws) for draws in DRAWS],
        "pressure over cached rows": [_pressure(rows, rows=rows) for rows in CACHED],
    }
    what = f"random Llama, {BLOCKS} blocks of width {WIDTH}, float32, {ROUNDS} rounds"
    return {"model": what, "device": device, **{name: _curve(points) for name, points in curves.items()}}


def _curve(points: Sequence[Point]) -> dict[str, object]:
    work = [_work(point) for point in points]
    times = np.array([[_seconds(point) for point in points] for _ in range(ROUNDS)])
    sizes = [point.size for point in points]
    medians = [statistics.median(column) for column in times.T]
    return {
        "points": sizes,
        "seconds": [round(seconds, 4) for seconds in medians],
        "gflop_per_s": [round(1e-9 * done / seconds, 1) for done, seconds in zip(work, medians, strict=True)],
        "exponent": spread(_slope(sizes, seconds) for seconds in times),
        "exponent_in_theory": round(_slope(sizes, work), 2),
    }


def _slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def _work(point: Point) -> float:
    """Floating-point operations of the matrix products in one call, which also warms it up."""
    with point.ready(), FlopCounterMode(display=False) as counter:
        point.call()
    return float(counter.get_total_flops())


def _seconds(point: Point) -> float:
    with point.ready():
        for _ in range(point.warm_ups):
            point.call()
        began = time.perf_counter()
        point.call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began


def _model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=BLOCKS,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    base = LlamaForCausalLM(config).to(tp.models.pick_device("auto"))
    model: Any = peft.get_peft_model(base, _lora(RANKS[0]), adapter_name=_named(RANKS[0]))
    for rank in RANKS[1:]:
        model.add_adapter(_named(rank), _lora(rank))
    return model.train()


def _lora(rank: int) -> peft.LoraConfig:
    return peft.LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear")


def _named(rank: int) -> str:
    return f"rank_{rank}"


def _step(model: Any, size: int, rows: int = ROWS[1], rank: int = RANKS[0], guard: Any = None) -> Point:
    """A training step as `tropism run` takes it: every token supervised, AdamW."""
    ids = torch.randint(VOCABULARY, (rows, TOKENS_A_ROW), generator=torch.Generator().manual_seed(0)).to(model.device)
    parameters = [parameter for name, parameter in model.named_parameters() if f".{_named(rank)}." in name]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    loss = SupervisedLoss(model)

    @contextmanager
    def ready() -> Iterator[None]:
        model.set_adapter(_named(rank))
        with loss.in_force(), nullcontext() if guard is None else guard.attach(model):
            yield

    def step() -> None:
        loss(model(input_ids=ids, **{SUPERVISED: ids}), ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    # A guard's first step checks that it is in force.
    return Point(size, step, ready, warm_ups=0 if guard is None else 1)


def _guarded(model: Any, count: int) -> Point:
    """Gradient projection, k = 8, at the last `count` blocks."""
    generator = torch.Generator().manual_seed(0)
    sites = [tp.Site(BLOCKS - 1 - block) for block in range(count)]
    guard = tp.GradientProjection(tp.Directions({site: torch.randn(8, WIDTH, generator=generator) for site in sites}))
    return _step(model, count, guard=guard)


def _pressure(size: int, rows: int = CACHED[0], draws: int = DRAWS[0]) -> Point:
    """`random_pressure` of `draws` directions on a made-up cache of `rows` chats at one site."""
    generator = torch.Generator().manual_seed(0)
    site = tp.Site(0)
    directions = tp.Directions({site: torch.randn(1, WIDTH, generator=generator)})
    cache = _cache(site, torch.randn(rows, WIDTH, generator=generator))
    return Point(size, lambda: random_pressure(cache, directions, count=draws))


def _cache(site: tp.Site, gradients: torch.Tensor) -> GradientCache:
    rows = len(gradients)
    manifest = {"chats": list(range(rows)), "width": WIDTH, "per_token": False, "base": {"config_hash": "", "name": ""}}
    facts = dict.fromkeys(range(rows), (0.0, 1, 1))
    return in_memory(manifest, {site: gradients}, facts, torch.arange(rows), torch.full((rows,), -1))


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
