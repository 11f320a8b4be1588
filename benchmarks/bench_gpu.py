"""On a GPU: training, guards, routing, the gradient cache and the memory estimate on a model of Qwen3-0.6B's shape.

The weights are random, in bfloat16, and nothing is downloaded: speed and memory do not depend on what a model knows. Rows are
random tokens of the lengths that chats have. Every side of a comparison runs in this process on the same rows, in interleaved
rounds; peaks are the allocator's own, above the weights. Without a GPU nothing is measured. Say `... gpu small` to try
the benchmark itself on a CPU.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

import tropism as tp
from benchmarks.ratios import spread
from tropism.data.batches import batches
from tropism.data.collate import Collator, pad
from tropism.data.render import Rendered
from tropism.data.sources.word_problems import word_problems
from tropism.experiments import memory
from tropism.training.loss import label_logits, response_loss
from tropism.training.options import LoraOptions, TrainOptions
from tropism.training.supervised import Row, train

QWEN3 = {
    "vocab_size": 151_936, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = {
    **QWEN3,
    "vocab_size": 50_000,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "intermediate_size": 128,
}
ROWS, BATCH, ROUNDS, K = 256, 16, 3, 8
LENGTHS = (64, 512)
"""Of a row, evenly spread; the last half of it is learned."""


class InOrder(Trainer):
    """The plain Trainer, given its batches in order."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Bench:
    """The model and the rows; `small` is for trying the benchmark out."""

    def __init__(self, small: bool) -> None:
        self.device = "cpu" if small else "cuda"
        self.rounds = 1 if small else ROUNDS
        torch.manual_seed(0)
        self.config = Qwen3Config(**(SMALL if small else QWEN3))
        self.model = self.fresh()
        self.trl_model = self.fresh() if find_spec("trl") else None  # TRL leaves its own forward on a model
        self.tokenizer = tp.models.load_tokenizer(tp.models.resolve(tp.models.SMOLLM2))
        count = 32 if small else ROWS
        low, high = (8, 32) if small else LENGTHS
        draw = torch.Generator().manual_seed(0)
        self.rows = []
        for length in torch.randint(low, high + 1, (count,), generator=draw).tolist():
            ids = torch.randint(0, self.config.vocab_size, (length,), generator=draw).tolist()
            learned = [place >= length // 2 for place in range(length)]
            self.rows.append(Row(Rendered(ids, learned, ""), {}))
        self.tokens = sum(len(row.rendered) for row in self.rows)

    def fresh(self) -> Any:
        return Qwen3ForCausalLM(self.config).to(self.device, torch.bfloat16)

    def adapted(self, model: Any = None) -> Any:
        torch.manual_seed(0)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        return get_peft_model(self.model if model is None else model, lora).train()

    def grouped(self) -> list[Row]:
        """Longest first: in this order the plain Trainer's batches are those that ours makes."""
        return sorted(self.rows, key=lambda row: -len(row.rendered))

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, what: Callable[[], object]) -> float:
        self.synchronize()
        began = time.perf_counter()
        what()
        self.synchronize()
        return time.perf_counter() - began

    def peak(self, what: Callable[[], float]) -> tuple[float, float]:
        """What the call returns, and the highest the allocator went above what it held before, in GiB."""
        if self.device != "cuda":
            return what(), 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        returned = what()
        return returned, (torch.cuda.max_memory_allocated() - before) / 2**30


def training(bench: Bench) -> dict[str, Any]:
    """Tokens a second, and the time and peak of the other sides over ours."""
    sides: dict[str, Callable[[], float]] = {
        "ours": lambda: _ours(bench, bench.grouped()),
        "trainer, same batches": lambda: _plain(bench, bench.grouped(), InOrder),
        "trainer, as it batches": lambda: _plain(bench, bench.rows, Trainer),
    }
    if find_spec("trl"):
        sides["trl, same batches"] = lambda: _trl(bench, bench.grouped())
    for side in sides.values():
        side()  # warms kernels and allocator up
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(bench.rounds):
        for name, side in sides.items():
            taken, peak = bench.peak(side)
            seconds[name].append(taken)
            peaks[name].append(peak)
    found: dict[str, Any] = {
        "tokens_per_second": {name: round(bench.tokens / statistics.median(taken)) for name, taken in seconds.items()},
        "peak_gib": {name: round(max(peak), 2) for name, peak in peaks.items()},
    }
    for name in sides:
        if name != "ours":
            found[f"{name} / ours"] = spread(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True))
    if not find_spec("flash_attn"):
        found["not measured"] = "TRL's padding-free and packing modes, which need flash attention (not installed here)"
    return found


def _ours(bench: Bench, rows: Sequence[Row]) -> float:
    model = bench.adapted()
    options = TrainOptions(epochs=1.0, batch_size=BATCH, bf16=True)
    with tempfile.TemporaryDirectory() as folder:
        taken = train(model, rows, options, pad_id=0, seed=0, log=Path(folder) / "t.jsonl")["train_runtime"]
    model.unload()
    return taken


def _arguments(bench: Bench, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder, "num_train_epochs": 1, "per_device_train_batch_size": BATCH, "learning_rate": 1e-3,
        "bf16": True, "use_cpu": bench.device == "cpu", "save_strategy": "no", "report_to": [], "disable_tqdm": True,
        "logging_strategy": "no", "remove_unused_columns": False, "gradient_checkpointing": False,
    }  # fmt: skip


def _plain(bench: Bench, rows: Sequence[Row], cls: type[Trainer]) -> float:
    model = bench.adapted()
    data = [{"rendered": row.rendered} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**_arguments(bench, folder))
        trainer = cls(model=model, args=arguments, train_dataset=data, data_collator=Collator(0))
        trainer.remove_callback(PrinterCallback)
        taken = float(trainer.train().metrics["train_runtime"])
    model.unload()
    return taken


def _trl(bench: Bench, rows: Sequence[Row]) -> float:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Ordered(SFTTrainer):
        """TRL's trainer, given its batches in order."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    columns = {
        "input_ids": [row.rendered.input_ids for row in rows],
        "completion_mask": [[int(on) for on in row.rendered.response_mask] for row in rows],
    }
    model = bench.adapted(bench.trl_model)
    collate = Collator(0)
    by_ids = {tuple(row.rendered.input_ids): row.rendered for row in rows}

    def same(batch: list[dict[str, Any]]) -> dict[str, Any]:
        return collate([{"rendered": by_ids[tuple(one["input_ids"])]} for one in batch])

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            **_arguments(bench, folder), dataset_kwargs={"skip_prepare_dataset": True}, max_length=None
        )
        trainer = Ordered(
            model=model, args=arguments, train_dataset=Dataset.from_dict(columns), data_collator=same,
            processing_class=bench.tokenizer,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        taken = float(trainer.train().metrics["train_runtime"])
    model.unload()
    return taken


def guards(bench: Bench) -> dict[str, Any]:
    """A step with a guard at three sites, k = 8, over the plain step; and with the update constraint of rank 16."""
    model = bench.adapted()
    draw = torch.Generator().manual_seed(0)
    d = tp.Directions(
        {site: torch.randn(K, bench.config.hidden_size, generator=draw) for site in tp.sites(model, "3 spread")}
    )
    v = tp.Directions({site: torch.randn(bench.config.hidden_size, generator=draw) for site in d.sites})
    factors = {
        name: (
            torch.randn(module.out_features, 16, generator=draw),
            torch.randn(16, module.in_features, generator=draw),
        )
        for name, module in model.get_base_model().named_modules()
        if hasattr(module, "lora_A")
    }
    u = tp.ParameterDirections.of_factors(factors)
    batch = _batch(bench, bench.rows[:BATCH])
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        with torch.autocast(bench.device, torch.bfloat16), label_logits(model):
            loss = response_loss(model(**inputs, supervised=labels), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    sides: dict[str, Callable[[], Any]] = {
        "ablation": lambda: tp.Ablation(d).attach(model),
        "gradient_projection": lambda: tp.GradientProjection(d).attach(model),
        "steering": lambda: tp.Steering(v).attach(model),
        "update_constraint": lambda: tp.UpdateConstraint(u).attach(model, optimizer=optimizer),
    }
    for _ in range(3):
        step()
    ratios: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(3 * bench.rounds):
        for name, attach in sides.items():
            plain = bench.seconds(step)
            with attach():
                step()  # the first step under a guard checks that it is in force
                ratios[name].append(bench.seconds(step) / plain)
    seconds = statistics.median(bench.seconds(step) for _ in range(5))
    model.unload()
    return {"plain_step_seconds": round(seconds, 4), **{name: spread(values) for name, values in ratios.items()}}


def routing(bench: Bench) -> dict[str, Any]:
    """A routed mixed batch over the same batch unrouted, and one example at a time with two optimisers over the routed."""
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    torch.manual_seed(0)
    model = tp.two_adapters(bench.model, retain=lora, forget=lora).train()
    batch = _batch(bench, bench.rows[:BATCH])
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    route = torch.tensor([1, 0] * (BATCH // 2), device=bench.device)
    trained = {name: [p for n, p in model.named_parameters() if f".{name}." in n] for name in ("retain", "forget")}
    together = torch.optim.AdamW([*trained["retain"], *trained["forget"]], lr=1e-6)
    apart = {name: torch.optim.AdamW(parameters, lr=1e-6) for name, parameters in trained.items()}

    def step(**columns: torch.Tensor) -> None:
        together.zero_grad()
        with torch.autocast(bench.device, torch.bfloat16), label_logits(model):
            loss = response_loss(model(**inputs, supervised=labels, **columns), labels)
        loss.backward()
        together.step()

    def one_at_a_time() -> None:
        for row, which in enumerate(route.tolist()):
            for p in trained["retain"]:
                p.requires_grad_(which != 1)
            for optimizer in apart.values():
                optimizer.zero_grad()
            with torch.autocast(bench.device, torch.bfloat16):
                loss = model(**{key: value[row : row + 1] for key, value in batch.items()}).loss
            loss.backward()
            for name, optimizer in apart.items():
                if not (which == 1 and name == "retain"):
                    optimizer.step()
        for p in trained["retain"]:
            p.requires_grad_(True)

    for _ in range(2):
        step()
    over, speedup = [], []
    for _ in range(2 * bench.rounds):
        unrouted = bench.seconds(step)
        with tp.GradientRouting().attach(model):
            step(route=route)
            routed = bench.seconds(lambda: step(route=route))
        over.append(routed / unrouted)
        speedup.append(bench.seconds(one_at_a_time) / routed)
    model.unload()
    return {"routed / unrouted": spread(over), "one at a time / routed": spread(speedup)}


def estimate(bench: Bench) -> dict[str, Any]:
    """The estimate of a training step's memory over the measured peak, weights aside; LoRA, with checkpointing, whole."""
    from tropism.experiments.fine_tune import with_adapters
    from tropism.experiments.held_model import sharing_weights

    found: dict[str, Any] = {}
    kinds = {"lora": {}, "lora, checkpointing": {"checkpointing": True}, "full": {"adapter": "full"}}
    longest = max(bench.rows, key=lambda row: len(row.rendered))
    for kind, said in kinds.items():
        options = TrainOptions(max_steps=2, batch_size=BATCH, bf16=True, lora=LoraOptions(r=8), **said)

        def fine_tune(options: TrainOptions = options) -> float:
            model = with_adapters(sharing_weights(bench.model), options, two=False)
            with tempfile.TemporaryDirectory() as folder:
                train(model, [longest] * (2 * BATCH), options, pad_id=0, seed=0, log=Path(folder) / "t.jsonl")
            return 0.0

        _, peak = bench.peak(fine_tune)
        expected = memory.of_training(
            bench.config, options, width=2, quantization="none", tokens=BATCH * len(longest.rendered),
            length=len(longest.rendered), learned=BATCH * sum(longest.rendered.response_mask), bf16=True, device=bench.device,
        )  # fmt: skip
        above = (expected.total - expected.weights) / 2**30
        found[kind] = {
            "measured_gib": round(peak, 2),
            "estimated_gib": round(above, 2),
            "estimate / measured": round(above / peak, 2) if peak else None,
        }
    return found


def gradient_cache(bench: Bench) -> dict[str, Any]:
    """Activation gradients of word problems at all sites of the middle half, over bare forward and backward passes."""
    model = bench.model.requires_grad_(False)
    chosen = tp.sites(model, "25%..75%")
    chats = [example.chat for example in word_problems(16 if bench.device == "cpu" else 128)]
    rendered = [tp.render(bench.tokenizer, chat) for chat in chats]

    def bare() -> None:
        for batch in batches(rendered, BATCH, device=bench.device):
            embedded = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_(True)
            with label_logits(model):
                logits = model(inputs_embeds=embedded, attention_mask=batch.attention_mask, supervised=batch.labels)
            response_loss(logits, batch.labels).backward()

    def collected() -> None:
        tp.collect_gradients(model, bench.tokenizer, chats, chosen, batch_size=BATCH)

    bare()
    collected()
    ratios = []
    for _ in range(bench.rounds):
        passes = bench.seconds(bare)
        ratios.append(bench.seconds(collected) / passes)
    return {"sites": len(chosen), "chats": len(chats), "collect / bare passes": spread(ratios)}


def _batch(bench: Bench, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    return {name: value.to(bench.device) for name, value in pad([row.rendered for row in rows], 0).items()}


def run(small: bool = False) -> dict[str, Any]:
    """Every part, with the device's name; a part that the memory is too small for says so."""
    if not small and not torch.cuda.is_available():
        return {"device": "no CUDA device: not measured"}
    bench = Bench(small)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if bench.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "model": "random weights of Qwen3-0.6B's shape, bfloat16",
        "attention": bench.model.config._attn_implementation,
        "rows": f"{len(bench.rows)} of {LENGTHS[0]} to {LENGTHS[1]} tokens, {bench.tokens} in all, batches of {BATCH}",
    }
    for part in (training, guards, routing, estimate, gradient_cache):
        found[part.__name__] = part(bench)
        print(json.dumps({part.__name__: found[part.__name__]}), file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    print(json.dumps(run("small" in sys.argv), indent=1))
