"""Rows of the data, and the model's own answers to the same prompts: what every measure compares."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tropism.data.chats import Chat, Example
from tropism.data.generation import GenerateOptions, generate
from tropism.data.render import render_prompts
from tropism.errors import DataError
from tropism.site import context_length

FEWEST_ROWS = 8
"""Under this many rows with a response there is no interval worth showing."""


ROOM, LONGEST_ANSWER = 2, 512
"""Answers of a trained model may be so many times as long as its training responses, and never longer than that."""


@dataclass(frozen=True)
class Sample:
    """What is measured: rows by their 0-based line, and own answers to some of their prompts."""

    lines: tuple[int, ...]
    chats: tuple[Chat, ...]
    own_lines: tuple[int, ...]
    """The rows whose prompts the model answered itself."""
    own: tuple[Chat, ...]
    rows: int
    """How many rows with a response the data has."""


def check_rows(examples: Sequence[Example]) -> list[int]:
    """The lines that have a response; raises `DataError` where there is too little to say anything.

    Identical rows count as one: a hundred copies of a row are one observation.
    """
    lines = [line for line, example in enumerate(examples) if example.response]
    if not lines:
        raise DataError(
            f"none of {len(examples)} rows has a response, so nothing would be learned; give rows with answers"
        )
    different = {(str(examples[line].chat)) for line in lines}
    if len(different) < FEWEST_ROWS:
        raise DataError(
            f"a forecast needs at least {FEWEST_ROWS} different rows with a response, found {len(different)} among "
            f"{len(examples)}; give more data"
        )
    return lines


def answer_tokens(model: Any, tokenizer: Any, examples: Sequence[Example], prompts: Sequence[Chat]) -> int:
    """How many tokens an answer to `prompts` may have, of a model that is trained on `examples`.

    Twice as many as 95 % of the training responses have: it ends by itself, also where it answers at more length than it was
    taught, or says something at its end. At most 512, and what the context has room for beside the longest prompt.
    """
    lengths = [len(tokenizer(one.response, add_special_tokens=False)["input_ids"]) for one in examples if one.response]
    asked = min(LONGEST_ANSWER, ROOM * round(float(np.quantile(lengths, 0.95))) + 4)
    limit = context_length(model)
    if limit is None:
        return asked
    return max(1, min(asked, limit - max(len(row) for row in render_prompts(tokenizer, prompts))))


def stratified(lines: Sequence[int], examples: Sequence[Example], size: int, seed: int) -> list[int]:
    """At most `size` lines, spread evenly over the lengths of the responses; in the order of the file.

    Lengths stand in for kinds of rows: a sample by chance alone can miss the few long or short ones.
    """
    if len(lines) <= size:
        return list(lines)
    by_length = sorted(lines, key=lambda line: (len(examples[line].response or ""), line))
    rng = random.Random(seed)
    chosen = []
    for stratum in range(size):
        low, high = len(by_length) * stratum // size, len(by_length) * (stratum + 1) // size
        chosen.append(by_length[rng.randrange(low, high)])
    return sorted(chosen)


def take(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    rows: int,
    own: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    template_kwargs: Mapping[str, Any] | None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> Sample:
    """Choose the rows to measure, and let the model answer some of their prompts itself, greedily."""
    with_response = check_rows(examples)
    lines = stratified(with_response, examples, rows, seed)
    asked = stratified(lines, examples, own, seed + 1)
    options = GenerateOptions(max_new_tokens=max_new_tokens, batch_size=batch_size)
    prompts = [examples[line].prompt for line in asked]
    answers = generate(model, tokenizer, prompts, options, seed=seed, template_kwargs=template_kwargs, report=report)
    answered = [(line, text) for line, text in zip(asked, answers, strict=True) if text.strip()]
    if len(answered) < FEWEST_ROWS:
        raise DataError(
            f"the model answers {len(asked) - len(answered)} of {len(asked)} of the data's prompts with nothing, so there "
            f"is nothing to compare the data with; is this an instruct model, and its chat template right?"
        )
    chats = [(*examples[line].prompt, {"role": "assistant", "content": text}) for line, text in answered]
    return Sample(
        tuple(lines),
        tuple(examples[line].chat for line in lines),
        tuple(line for line, _ in answered),
        tuple(chats),
        len(with_response),
    )
