"""Training throughput against plain `Trainer` + PEFT with the model's own loss, on the same chats in the same precision.

GSM8K chats where the data is at hand, word problems otherwise; which of the two is printed. Every timing runs in a process
of its own, in interleaved rounds, so that neither side inherits the other's heap. `same_batches` gives both sides the same
batches in the same order, so that it is the label-only logits alone; `whole` lets each side batch as it does (ours by
length, the Trainer at random).
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from benchmarks.examples import examples
from benchmarks.ratios import spread
from tropism import models, precision
from tropism.data.collate import Collator
from tropism.data.render import render
from tropism.training.options import TrainOptions
from tropism.training.supervised import Row, train

ROUNDS, CHATS, BATCH = 3, 24, 8
SIDES = ("ours", "same", "random")


class InOrder(Trainer):
    """The plain Trainer, given its batches in order."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def adapted(model):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))


def plain(model, rows, pad_id, bf16, folder, cls=Trainer) -> float:
    arguments = TrainingArguments(
        output_dir=folder, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=1e-3, bf16=bf16,
        use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"rendered": row.rendered} for row in rows]
    trainer = cls(model=adapted(model), args=arguments, train_dataset=data, data_collator=Collator(pad_id))
    trainer.remove_callback(PrinterCallback)
    seconds = trainer.train().metrics["train_runtime"]
    trainer.model.unload()
    return seconds


def ours(model, rows, pad_id, bf16, folder) -> float:
    peft_model = adapted(model)
    options = TrainOptions(epochs=1.0, batch_size=BATCH, bf16=bf16)
    seconds = train(peft_model, rows, options, pad_id=pad_id, seed=0, log=Path(folder) / "t.jsonl")["train_runtime"]
    peft_model.unload()
    return seconds


def side(name: str) -> dict[str, float | str]:
    """One timing in this process, after one warm-up step."""
    model, tokenizer = models.load(models.SMOLLM2)
    data, chats = examples(CHATS)
    rows = [Row(render(tokenizer, example.chat), {}) for example in chats]
    # longest first: in this order the plain Trainer's batches are those that length grouping makes
    grouped = sorted(rows, key=lambda row: -len(row.rendered))
    bf16 = precision.for_training(str(model.device), model.config).bfloat16
    pad_id = tokenizer.pad_token_id
    with tempfile.TemporaryDirectory() as folder:
        if name == "ours":
            ours(model, rows[:BATCH], pad_id, bf16, folder)
            seconds = ours(model, grouped, pad_id, bf16, folder)
        else:
            cls, chosen = (InOrder, grouped) if name == "same" else (Trainer, rows)
            plain(model, rows[:BATCH], pad_id, bf16, folder, cls)
            seconds = plain(model, chosen, pad_id, bf16, folder, cls)
    return {
        "data": data,
        "precision": "bfloat16 autocast" if bf16 else "float32",
        "tokens": sum(len(row.rendered) for row in rows),
        "seconds": seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def timed(name: str) -> dict[str, float | str]:
    command = [sys.executable, "-m", "benchmarks.bench_training", name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"the timing of {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run() -> dict[str, object]:
    rounds = [{name: timed(name) for name in SIDES} for _ in range(ROUNDS)]

    def ratio(name: str, of: str = "ours", what: str = "seconds") -> dict[str, float]:
        return spread(r[name][what] / r[of][what] for r in rounds)

    first = rounds[0]["ours"]
    return {
        "data": first["data"],
        "precision": first["precision"],
        "tokens_per_second": round(first["tokens"] / statistics.median(r["ours"]["seconds"] for r in rounds)),
        "against_trainer_same_batches": ratio("same"),
        "against_trainer_whole": ratio("random"),
        "peak_memory_against_trainer": ratio("ours", "same", "peak_gb"),
        "peak_gb": {name: spread(r[name]["peak_gb"] for r in rounds) for name in SIDES},
    }


if __name__ == "__main__":
    print(json.dumps(side(sys.argv[1]) if len(sys.argv) > 1 else run()))
