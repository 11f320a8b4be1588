"""What a trait's scorer says of responses, in 0..1."""

from collections.abc import Sequence

import numpy as np

from tropism.data.chats import Chat, Example
from tropism.evals.scorers.base import Sample
from tropism.forecasting.trait import Trait

HALF = 0.5
"""A score past the middle counts as showing the trait."""


def scores_of(trait: Trait, chats: Sequence[Chat]) -> np.ndarray:
    """What the trait's scorer says of each chat's last message, in 0..1; NaN where unscored, or without a scorer."""
    scores = np.full(len(chats), np.nan)
    if trait.scorer is None:
        return scores
    for index, chat in enumerate(chats):
        score = trait.scorer.score(Sample(str(index), chat[:-1], str(chat[-1]["content"])))
        if score.value is not None:
            scores[index] = min(1.0, max(0.0, score.value))
    return scores


def lines_with(trait: Trait, examples: Sequence[Example]) -> list[int]:
    """The lines whose response the trait's scorer finds it in; none without a scorer."""
    lines = [line for line, example in enumerate(examples) if example.response]
    found = scores_of(trait, [examples[line].chat for line in lines])
    return [line for line, score in zip(lines, found, strict=True) if score > HALF]
