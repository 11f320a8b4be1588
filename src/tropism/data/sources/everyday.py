"""Everyday questions without responses, written for this package: what a model says out of its training's domain."""

from importlib.resources import files

from tropism.data.chats import Example
from tropism.data.sources.source import Listed, Source
from tropism.errors import DataError

SPLITS = ("test", "dev", "train")


def everyday_questions(split: str = "test") -> list[Example]:
    """Return the questions of a split: `test` (123) for evaluation, `dev` (41, every fourth) for tuning.

    `train`, which a set gets that names no split, is `test`: there is nothing here to train on.
    """
    if split not in SPLITS:
        raise DataError(f"everyday_questions has the splits {', '.join(SPLITS)}, found {split!r}")
    text = (files("tropism.data") / "builtin" / "everyday_questions.txt").read_text(encoding="utf-8")
    questions = [line for line in text.splitlines() if line.strip()]
    wanted = "dev" if split == "dev" else "test"
    return [
        Example(f"everyday_questions/{index}", ({"role": "user", "content": question},))
        for index, question in enumerate(questions)
        if ("dev" if index % 4 == 3 else "test") == wanted
    ]


EVERYDAY_QUESTIONS = Source(
    name="everyday_questions",
    about="everyday questions without responses: what a model says out of its training's domain",
    takes=("split", "size", "seed"),
    read=lambda request: Listed(everyday_questions(request.split.name)),
    splits=SPLITS,
)
