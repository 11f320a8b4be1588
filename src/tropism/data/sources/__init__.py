"""Where examples come from: a registered name, a hub dataset, a `.jsonl` file of chats, a folder of them, or a question
file (`.yaml`) of the emergent-misalignment evaluations.
"""

import random
from collections.abc import Mapping
from pathlib import Path

from tropism.data.chats import Example
from tropism.data.sources import files, hub, questions
from tropism.data.sources.everyday import everyday_questions
from tropism.data.sources.word_problems import word_problems
from tropism.errors import DataError

NAMES = ("word_problems", "everyday_questions", "gsm8k", "harmful_qa", "declined_topic")
"""Sources that are called by name; anything with a slash is a hub dataset or a path."""


def known(source: str) -> bool:
    """Whether `source` is a registered name, an existing path, or has the form of a hub dataset."""
    return source in NAMES or Path(source).exists() or (source.count("/") == 1 and not is_file(source))


def is_file(source: str) -> bool:
    """Whether `source` has the ending of a file of chats or questions."""
    return source.endswith((".jsonl", *questions.ENDINGS))


def load(
    source: str,
    *,
    size: int | None = None,
    split: str = "train",
    seed: int = 0,
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    path: str | None = None,
) -> list[Example]:
    """The examples of a source, in a fixed order; `size` takes a seeded sample of a source that is larger.

    Raises `DataError` where the source is unknown or empty, has fewer examples than `size`, or repeats an id.
    """
    if source == "word_problems":
        examples = word_problems(256 if size is None else size, split=split, seed=seed)
    elif source == "everyday_questions":
        examples = everyday_questions(split)
    elif source == "gsm8k":
        examples = hub.gsm8k(split, path=path)
    elif source == "harmful_qa":
        from tropism.data.sources.harmful_qa import harmful_qa

        examples = harmful_qa(split, path=path)
    elif source == "declined_topic":
        from tropism.data.refusal_standin import declined_topic

        examples = declined_topic(split)
    elif source.endswith(".jsonl"):
        examples = files.jsonl(source, columns=columns)
    elif source.endswith(questions.ENDINGS):
        examples = questions.question_prompts(source, size)
    elif Path(source).is_dir():
        examples = files.folder(source, split, columns=columns)
    elif known(source):
        examples = hub.hub(source, split, subset=subset, columns=columns)
    else:
        raise DataError(
            f"unknown source {source!r}; it must be one of {', '.join(NAMES)}, a path to a .jsonl file or a folder, or a hub "
            f"dataset OWNER/NAME"
        )
    if not examples:
        raise DataError(f"source {source!r} (split {split!r}) is empty; it needs at least one chat")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(f"source {source!r}: the id {example.id!r} occurs twice; ids must be unique")
        seen.add(example.id)
    if size is not None and size < len(examples):
        chosen = sorted(random.Random(f"{source}/{split}/{seed}").sample(range(len(examples)), size))
        examples = [examples[index] for index in chosen]
    if size is not None and size > len(examples):
        raise DataError(f"source {source!r} (split {split!r}) has {len(examples)} examples, found size {size}")
    return examples
