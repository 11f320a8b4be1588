"""Everyday questions without responses, written for this package: what a model says out of its training's domain."""

from importlib.resources import files

from tropism.data.chats import Example
from tropism.errors import DataError


def everyday_questions(split: str = "test") -> list[Example]:
    """The questions of a split: `test` (123 of them) for evaluation, `dev` (41) for tuning; every fourth is in `dev`."""
    if split not in ("test", "dev", "train"):
        raise DataError(f"everyday_questions has the splits test and dev, found {split!r}")
    text = (files("tropism.data") / "builtin" / "everyday_questions.txt").read_text(encoding="utf-8")
    questions = [line for line in text.splitlines() if line.strip()]
    # A study that names no split gets the test questions: there is nothing here to train on.
    wanted = "dev" if split == "dev" else "test"
    return [
        Example(f"everyday_questions/{index}", ({"role": "user", "content": question},))
        for index, question in enumerate(questions)
        if ("dev" if index % 4 == 3 else "test") == wanted
    ]
