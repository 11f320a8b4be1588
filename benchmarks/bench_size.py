"""Size: a pool of two against one process with two threads; a resumed training against a whole one; memory against its estimate.

Everything runs on SmolLM2, each figure in processes of its own. `pool_of_2` is how many times faster two workers with one thread
each are than one process with two threads on the same runs, of three sizes; Ray, where it is there, is measured against the pool.
`resume` is the largest difference between the weights of a training that was interrupted and of one that was not. `memory` is the
estimate over the measured peak of a training step, above what the libraries take.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = """
name: pool
model: HuggingFaceTB/SmolLM2-135M-Instruct
seeds: SEEDS
data:
  train: {source: word_problems, size: 16}
  held_out: {source: word_problems, size: 4, split: test}
train: {max_steps: STEPS, batch_size: BATCH, lora: {r: 4}}
conditions: {baseline: {}}
measure: {loss: {scorer: response_loss, on: [held_out]}}
"""
SIZES = {"very_small": (4, 1, 8), "small": (8, 2, 8), "larger": (16, 8, 4)}
"""Size → steps, examples a step, seeds; the untrained model is a run of its own."""
MODELS = ("smollm2", "qwen3")
MEMORY = {
    "lora": {"batch_size": 8},
    "lora_checkpointing": {"batch_size": 8, "checkpointing": True},
    "lora_bfloat16": {"batch_size": 8, "bf16": True},
    "full": {"batch_size": 4, "adapter": "full"},
    "qlora_nf4": {"batch_size": 8, "quantization": "nf4"},
}
QWEN3 = {
    "vocab_size": 151_936, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "tie_word_embeddings": True,
}  # fmt: skip
"""The real sizes of Qwen3-0.6B."""


def alone(task: str, *arguments: str, threads: int) -> dict[str, Any]:
    """Run a task of this file in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.bench_size", task, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{task} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def runs(workers: str, size: str) -> dict[str, float]:
    """Seconds of an experiment of some runs, in this process (`0`), in a pool, or on Ray (`ray`), imports included."""
    began = time.monotonic()
    from tropism.experiments.executors.choose import executor

    chosen = executor("ray") if workers == "ray" else executor("pool", int(workers)) if int(workers) else None
    import tropism as tp

    steps, batch, seeds = SIZES[size]
    text = FILE.replace("STEPS", str(steps)).replace("BATCH", str(batch)).replace("SEEDS", str([*range(seeds)]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pool.yaml"
        file.write_text(text, encoding="utf-8")
        tp.run(file, Path(folder) / "out", executor=chosen)
        return {"seconds": time.monotonic() - began}


def resumed() -> dict[str, float]:
    """The largest difference, over all weights, between a training that was interrupted and one that was not."""
    from tropism import models
    from tropism.data.render import render
    from tropism.data.sources.word_problems import word_problems
    from tropism.experiments.checkpoints import RunCheckpoints
    from tropism.experiments.fine_tune import fine_tune
    from tropism.training.checkpoints import trained
    from tropism.training.options import LoraOptions, TrainOptions
    from tropism.training.supervised import Row

    _, tokenizer = models.load(models.SMOLLM2)
    rows = [Row(render(tokenizer, example.chat), {}) for example in word_problems(12)]
    options = TrainOptions(max_steps=6, batch_size=4, lora=LoraOptions(r=4, dropout=0.1), save_steps=2)

    def train(folder: str, stop: int = 0):
        def report(step: int, *_) -> None:
            if step == stop:
                raise KeyboardInterrupt

        kept = RunCheckpoints(Path(folder), "same")
        if (found := kept.latest()) is not None:
            kept.go_back_to(found)
        model, _ = fine_tune(
            lambda: models.load(models.SMOLLM2)[0], rows, options, two=False, seed=0, pad_id=tokenizer.pad_token_id,
            log=Path(folder) / "training.jsonl", report=report, checkpoints=kept,
        )  # fmt: skip
        return trained(model)

    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cut:
        expected = train(whole)
        with contextlib.suppress(KeyboardInterrupt):
            train(cut, stop=5)
        found = train(cut)
        return {"largest_difference": max(float((expected[name] - found[name]).abs().max()) for name in expected)}


def memory(of: str, kind: str, rows: str = "") -> dict[str, object]:
    """The peak of two training steps in this process, above what it held before the model, against the estimate.

    `rows` is another number of rows a batch than the kind's own.
    """
    import torch

    from tropism import models
    from tropism.experiments import memory as estimate
    from tropism.experiments.fine_tune import with_adapters
    from tropism.experiments.held_model import shares, sharing_weights
    from tropism.training.options import TrainOptions
    from tropism.training.supervised import train

    said = dict(MEMORY[kind])
    if rows:
        said["batch_size"] = int(rows)
    quantization = said.pop("quantization", "none")
    # Float32 where training would take it anyway, on a processor without bfloat16 instructions.
    options = TrainOptions(max_steps=2, **{"bf16": models.computes_bfloat16("cpu"), **said})
    row = _row()
    before = _resident()
    held = _smollm2(quantization) if of == "smollm2" else _qwen3(quantization)
    torch.manual_seed(0)
    _let_go_of_files(held)
    start = sharing_weights(held) if shares(held) else held
    model = with_adapters(start, options, two=False)
    _forget_the_peak()
    batch = options.first_batch
    with tempfile.TemporaryDirectory() as folder:
        train(model, [row] * (2 * batch), options, pad_id=0, seed=0, log=Path(folder) / "t.jsonl")
    peak = _peak() - before
    tokens, learned = batch * len(row.rendered), batch * sum(row.rendered.response_mask)
    expected = estimate.of_training(
        held.config, options, width=4, quantization=quantization, tokens=tokens, length=len(row.rendered),
        learned=learned, bf16=bool(options.bf16), device="cpu",
    )  # fmt: skip
    return {
        "precision": "bfloat16" if options.bf16 else "float32",
        "tokens": tokens,
        "measured_gib": round(peak / 2**30, 2),
        "estimated_gib": round(expected.total / 2**30, 2),
        "estimate_over_measured": round(expected.total / peak, 2),
    }


def _row():
    """One long row, so that activations and logits weigh as much as the weights do."""
    from tropism import models
    from tropism.data.render import render
    from tropism.data.sources.word_problems import word_problems
    from tropism.training.supervised import Row

    tokenizer = models.load_tokenizer(models.resolve(models.SMOLLM2))
    text = [e.chat[-1]["content"] for e in word_problems(2)]
    return Row(render(tokenizer, [{"role": "user", "content": text[0]}, {"role": "assistant", "content": text[1]}]), {})


def _smollm2(quantization: str):
    from tropism import models

    loading = models.Loading(quantization=quantization)
    return models.load(models.SMOLLM2, device="cpu", dtype="float32", loading=loading)[0]


def _qwen3(quantization: str):
    """A model of Qwen3-0.6B's shape with random weights, read from a folder like any other."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from tropism import models

    if quantization == "none":
        torch.manual_seed(0)
        return Qwen3ForCausalLM(Qwen3Config(**QWEN3)).eval()
    with tempfile.TemporaryDirectory() as folder:
        # By another process: what the whole weights leave idle in its heap is no part of training on few bits.
        alone("written", folder, threads=2)
        given = models.Loading(quantization=quantization).arguments(torch.float32, "cpu")
        return AutoModelForCausalLM.from_pretrained(folder, **given)


def written(folder: str) -> dict[str, str]:
    """Write the random Qwen3 to a folder."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**QWEN3)).save_pretrained(folder)
    return {"folder": folder}


def _let_go_of_files(model: Any) -> None:
    """Hold the weights in memory of their own.

    One that is a view of a mapped file keeps the whole file mapped, and pages of it that were read once count as resident
    although the system may take them back at any time: with 4 bits they outweigh the model.
    """
    for parameter in model.parameters():
        if parameter.dtype.is_floating_point:
            parameter.data = parameter.data.clone()


def _resident() -> int:
    import psutil

    gc.collect()
    return int(psutil.Process().memory_info().rss)


def pool_of_two(size: str) -> dict[str, float]:
    """Two workers with a thread each against one process with two threads: seconds of each, and how many times faster."""
    one, pool = (alone("runs", workers, size, threads=2)["seconds"] for workers in ("0", "2"))
    return {"one_seconds": round(one, 1), "pool_seconds": round(pool, 1), "times": round(one / pool, 2)}


def _forget_the_peak() -> None:
    """Begin to count the process' peak anew, after what loading took (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The highest resident memory since then, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memories() -> dict[str, object]:
    """Each model and kind; without bitsandbytes there is no QLoRA to measure, which is said."""
    found: dict[str, object] = {}
    for of, kind in product(MODELS, MEMORY):
        there = "quantization" not in MEMORY[kind] or find_spec("bitsandbytes")
        found[f"{of} {kind}"] = (
            alone("memory", of, kind, threads=2) if there else "not measured: bitsandbytes is not installed"
        )
    return found


def run() -> dict[str, object]:
    pools = {size: pool_of_two(size) for size in SIZES}
    ray = alone("runs", "ray", "small", threads=2)["seconds"] if find_spec("ray") else None
    above = None if ray is None else (ray - pools["small"]["pool_seconds"]) / (SIZES["small"][2] + 1)
    return {
        "pool_of_2": pools,
        "ray_seconds_per_run_above_pool": None if above is None else round(above, 1),
        "resume": alone("resumed", threads=2)["largest_difference"],
        "memory": memories(),
    }


if __name__ == "__main__":
    tasks = {"runs": runs, "pool_of_two": pool_of_two, "resumed": resumed, "memory": memory, "written": written}
    print(json.dumps(tasks[sys.argv[1]](*sys.argv[2:]) if len(sys.argv) > 1 else run()))
