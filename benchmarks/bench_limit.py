"""The machine's own limit: what a matrix product and a copy of memory reach here, which no model can exceed.

The products are those of SmolLM2's MLP on 1,024 tokens. Medians of interleaved rounds, with the lowest and the highest.
"""

import json
import os
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.ratios import spread
from tropism.models import computes_bfloat16, pick_device

TOKENS, WIDTH, INNER, ROUNDS = 1024, 576, 1536, 9


def seconds(call: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def run() -> dict[str, object]:
    device = pick_device("auto")
    dtypes = [torch.float32, torch.bfloat16] if computes_bfloat16(device) else [torch.float32]
    held = {dtype: torch.randn(TOKENS, WIDTH, device=device, dtype=dtype) for dtype in dtypes}
    weights = {dtype: torch.randn(INNER, WIDTH, device=device, dtype=dtype) for dtype in dtypes}
    large = torch.zeros(2**26 // 4, device=device)
    calls = {str(d).removeprefix("torch."): partial(torch.nn.functional.linear, held[d], weights[d]) for d in dtypes}
    calls["copy"] = large.clone
    for call in calls.values():
        seconds(call, device)
    rounds = [{name: seconds(call, device) for name, call in calls.items()} for _ in range(ROUNDS)]
    work = 2e-9 * TOKENS * WIDTH * INNER
    found: dict[str, object] = {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    for name in calls:
        if name != "copy":
            found[f"{name}_gflop_per_s"] = spread(work / one[name] for one in rounds)
    # Read once and written once.
    found["copy_gb_per_s"] = spread(2e-9 * large.numel() * 4 / one["copy"] for one in rounds)
    return found


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
