"""A training step on chats packed into one row, with the same chats padded: SmolLM2, LoRA r = 8, batches of 4.

Chats of one to four word problems, in batches of like length, as training makes them, and at random. Both sides have the same
batches in the same order, interleaved in one process; each batch is timed by itself and its two times compared.
"""

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.ratios import spread
from tropism import models
from tropism.data.collate import Collator, length_grouped
from tropism.data.render import render
from tropism.data.sources.word_problems import word_problems
from tropism.training.loss import SUPERVISED, SupervisedLoss
from tropism.training.packing import WITHOUT_CACHE

ROUNDS, CHATS, BATCH, MOST = 2, 12, 4, 4


def chats(tokenizer: Any) -> list[dict[str, Any]]:
    """Rendered chats of one to `MOST` problems and their answers, in a random order."""
    problems = iter(word_problems(CHATS * MOST))
    joined = [sum((tuple(next(problems).chat) for _ in range(1 + i % MOST)), ()) for i in range(CHATS)]
    random.Random(0).shuffle(joined)
    return [{"rendered": render(tokenizer, chat)} for chat in joined]


class Steps:
    """Training steps of one model on one loss, timed."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self._model, self._loss = model, SupervisedLoss(model)
        self._optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
        self._collators = {False: Collator(pad_id), True: Collator(pad_id, packing=True)}

    def seconds(self, rows: Sequence[dict[str, Any]], *, packing: bool) -> float:
        device = next(self._model.parameters()).device
        began = time.perf_counter()
        batch = {name: values.to(device) for name, values in self._collators[packing](rows).items()}
        labels = batch.pop("labels")
        outputs = self._model(**batch, **(WITHOUT_CACHE if packing else {}), **{SUPERVISED: labels})
        self._loss(outputs, labels).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def compare(self, batches: Sequence[Sequence[dict[str, Any]]], rounds: int) -> dict[str, float]:
        """Time of a packed step over that of the padded step on the same chats, all batches of all rounds."""
        ratios = []
        with self._loss.in_force():
            for packing in (False, True):
                self.seconds(batches[0], packing=packing)
            for number in range(rounds * len(batches)):
                rows = batches[number % len(batches)]
                order = (False, True) if number % 2 else (True, False)
                took = {packing: self.seconds(rows, packing=packing) for packing in order}
                ratios.append(took[True] / took[False])
        return spread(ratios)


def padding(batches: Sequence[Sequence[dict[str, Any]]]) -> float:
    """The share of padded batches that is padding."""
    lengths = [[len(row["rendered"]) for row in batch] for batch in batches]
    return round(1 - sum(map(sum, lengths)) / sum(len(batch) * max(batch) for batch in lengths), 2)


def run(rounds: int = ROUNDS) -> dict[str, Any]:
    base, tokenizer = models.load(models.SMOLLM2)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")).train()
    rows = chats(tokenizer)
    lengths = [len(row["rendered"]) for row in rows]
    kinds = {
        "like length": [[rows[i] for i in places] for places in length_grouped(lengths, BATCH)],
        "at random": [rows[start : start + BATCH] for start in range(0, CHATS, BATCH)],
    }
    steps = Steps(model, tokenizer.pad_token_id)
    return {
        "tokens of a chat": spread(lengths, 0),
        "attention": base.config._attn_implementation,
        **{
            f"{kind}, packed over padded": {"padding": padding(batches), **steps.compare(batches, rounds)}
            for kind, batches in kinds.items()
        },
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
