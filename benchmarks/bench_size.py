"""Size: a pool of two against one process with two threads; a resumed training against a whole one; memory against its estimate.

Everything runs on SmolLM2, each figure in processes of its own. `pool_of_2` is how many times faster two workers with one thread
each are than one process with two threads on the same runs, of three sizes; Ray, where it is there, is measured against the pool.
`resume` is the largest difference between the weights of a training that was interrupted and of one that was not. `memory` is the
estimate over the measured peak of a training step, above what the libraries take.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

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
MEMORY = {
    "lora": {"batch_size": 12},
    "lora_checkpointing": {"batch_size": 12, "checkpointing": True},
    "full": {"batch_size": 4, "adapter": "full"},
}


def alone(task: str, *arguments: str, threads: int) -> dict[str, float]:
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


def memory(kind: str) -> dict[str, float]:
    """The peak of two training steps in this process, above what it held before the model, against the estimate."""
    from transformers import AutoConfig

    from tropism import models
    from tropism.data.render import render
    from tropism.data.sources.word_problems import word_problems
    from tropism.experiments import memory as estimate
    from tropism.experiments.fine_tune import with_adapters
    from tropism.experiments.held_model import sharing_weights
    from tropism.training.options import TrainOptions
    from tropism.training.supervised import Row, train

    options = TrainOptions(max_steps=2, bf16=False, **MEMORY[kind])
    source = models.resolve(models.SMOLLM2)
    tokenizer = models.load_tokenizer(source)
    batch = options.first_batch
    # Long rows of one length, so that activations and logits weigh as much as the weights do.
    text = [e.chat[-1]["content"] for e in word_problems(2)]
    chat = [{"role": "user", "content": text[0]}, {"role": "assistant", "content": text[1]}]
    row = Row(render(tokenizer, chat), {})
    before = _resident()
    held = models.load_source(source)[0]
    model = with_adapters(sharing_weights(held), options, two=False)
    with tempfile.TemporaryDirectory() as folder:
        train(model, [row] * (2 * batch), options, pad_id=0, seed=0, log=Path(folder) / "t.jsonl")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    tokens, learned = batch * len(row.rendered), batch * sum(row.rendered.response_mask)
    expected = estimate.of_training(
        AutoConfig.from_pretrained(source.path), options, width=4, quantization="none", tokens=tokens,
        length=len(row.rendered), learned=learned, bf16=False, device="cpu",
    )  # fmt: skip
    return {
        "tokens": tokens,
        "measured_gib": round(peak / 2**30, 2),
        "estimated_gib": round(expected.total / 2**30, 2),
        "estimate_over_measured": round(expected.total / peak, 2),
    }


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def pool_of_two(size: str) -> dict[str, float]:
    """Two workers with a thread each against one process with two threads: seconds of each, and how many times faster."""
    one, pool = (alone("runs", workers, size, threads=2)["seconds"] for workers in ("0", "2"))
    return {"one_seconds": round(one, 1), "pool_seconds": round(pool, 1), "times": round(one / pool, 2)}


def run() -> dict[str, object]:
    pools = {size: pool_of_two(size) for size in SIZES}
    ray = alone("runs", "ray", "small", threads=2)["seconds"] if find_spec("ray") else None
    above = None if ray is None else (ray - pools["small"]["pool_seconds"]) / (SIZES["small"][2] + 1)
    return {
        "pool_of_2": pools,
        "ray_seconds_per_run_above_pool": None if above is None else round(above, 1),
        "resume": alone("resumed", threads=2)["largest_difference"],
        "memory": {kind: alone("memory", kind, threads=2) for kind in MEMORY},
    }


if __name__ == "__main__":
    tasks = {"runs": runs, "pool_of_two": pool_of_two, "resumed": resumed, "memory": memory}
    print(json.dumps(tasks[sys.argv[1]](*sys.argv[2:]) if len(sys.argv) > 1 else run()))
