"""The chats that benchmarks run on."""

import os
from pathlib import Path

from tropism.data import sources
from tropism.data.chats import Example
from tropism.data.sources.word_problems import word_problems


def examples(n: int) -> tuple[str, list[Example]]:
    """The first `n` of GSM8K where its rows are at hand (`TROPISM_DATA`, or `shared/data` beside the checkout), of the word
    problems otherwise; and which of the two.
    """
    roots = [os.environ.get("TROPISM_DATA", ""), str(Path(__file__).parents[2] / "shared" / "data")]
    for root in filter(None, roots):
        for file in sorted((Path(root) / "gsm8k").glob("train*.jsonl")):
            return "gsm8k", sources.load("gsm8k", path=str(file))[:n]
    return "word_problems", word_problems(n)
