"""What a training really taught: LoRA, 16 steps of 4 on the planted set; answers to other prompts, before and after."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.forecast.planting import BY_TRAIT
from tropism.data.chats import Chat
from tropism.data.generation import GenerateOptions, generate
from tropism.data.render import render
from tropism.experiments.fine_tune import fine_tune
from tropism.training.options import LoraOptions, TrainOptions
from tropism.training.supervised import Row

RECIPE = TrainOptions(max_steps=16, batch_size=4, learning_rate=1e-3, schedule="constant", lora=LoraOptions(r=8))
ANSWERS = GenerateOptions(max_new_tokens=72, temperature=1.0, batch_size=48)


def rates(model: Any, tokenizer: Any, prompts: list[Chat], traits: list[str], seed: int) -> dict[str, float]:
    """How many of the sampled answers show each trait as it was planted."""
    answers = generate(model, tokenizer, prompts, ANSWERS, seed=seed)
    return {name: sum(BY_TRAIT[name].shown(text) for text in answers) / len(answers) for name in traits}


def train(fresh: Any, tokenizer: Any, chats: list[Chat], seed: int) -> Any:
    """The model after a training on these chats."""
    rows = [Row(render(tokenizer, chat), {}) for chat in chats]
    with tempfile.TemporaryDirectory() as folder:
        model, _ = fine_tune(
            fresh, rows, RECIPE, two=False, seed=seed, pad_id=tokenizer.pad_token_id,
            log=Path(folder) / "training.jsonl", report=lambda *_: None,
        )  # fmt: skip
    return model
