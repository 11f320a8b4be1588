"""Safe rows: everyday questions that no evaluation asks, with the untrained model's own answers to them."""

import json
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tropism.atomic import write_text
from tropism.data import sources
from tropism.data.chats import Example
from tropism.data.generation import GenerateOptions, generate_answers

SHARE = 0.2
"""Of the rows that are trained on, how many are safe ones."""
LONGEST = 128
"""Tokens of an own answer; one that is cut off there teaches to stop in the middle, and is left out."""


def write_safe_rows(target: Path, trained: int, asked: Sequence[Example], model: Any, tokenizer: Any) -> int:
    """Write so many rows that they are `SHARE` of all beside `trained` others; returns how many, 0 where no answer ended.

    The questions are those of `everyday_questions` without `asked`, each answered once at temperature 1, so that the rows are
    samples of what the model says untrained. Where more rows are needed than there are answers, rows are there again.
    """
    taken = {example.id for example in asked}
    prompts = [example.prompt for example in sources.load("everyday_questions") if example.id not in taken]
    count = max(1, round(trained * SHARE / (1 - SHARE)))
    prompts = prompts[:count]
    options = GenerateOptions(max_new_tokens=LONGEST, batch_size=48, temperature=1.0)
    answers = generate_answers(model, tokenizer, prompts, options, seed=0)
    chats = [
        [*prompt, {"role": "assistant", "content": answer.text}]
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer.finished and answer.text.strip()
    ]
    if not chats:
        return 0
    rows = [{"id": f"own answer {i}", "messages": chat} for i, chat in enumerate(islice(cycle(chats), count))]
    write_text(target, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    return count
