"""A scorer's bounds: what its scores never pass, and where a report's intervals end."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest

from tropism.errors import RunFailed
from tropism.evals.scorers.base import SCORERS, ResponseScorer, Sample, Score
from tropism.evals.scorers.judge import JudgeScorer
from tropism.evals.scorers.registry import load_scorer
from tropism.experiments.evaluate import _mean

OPTIONS = {"contains": {"text": "a"}, "regex": {"pattern": "a"}, "language": {"language": "english"}}
TEXTS = ["", "A", "a b c a b c a b c", "12", "I'm sorry, no.", "LOUD AND CLEAR", "#### 7", "née ßẞ", "!!!!"]
BUILT_IN = sorted(
    name for name, cls in SCORERS.items() if issubclass(cls, ResponseScorer) and name not in ("language", "bandit")
)
"""Without the two that need an extra."""


@pytest.mark.parametrize("name", BUILT_IN)
def test_scores_of_responses_lie_within_the_scorers_bounds(name):
    scorer = load_scorer(name, OPTIONS.get(name))
    low, high = scorer.bounds
    for text in TEXTS:
        value = scorer.score(Sample("1", (), text, target="7")).value
        assert value is None or low <= value <= high


@pytest.mark.parametrize(
    ("name", "bounds"),
    [("response_loss", (0, math.inf)), ("base_perplexity", (1, math.inf)), ("kl_to_base", (0, math.inf))],
)
def test_a_loss_has_a_lower_bound_alone(name, bounds):
    assert load_scorer(name).bounds == bounds


def test_a_judges_bounds_follow_its_style():
    options = {"prompt": "{question} {answer}", "model": "m", "base_url": "http://localhost:1/v1"}
    assert JudgeScorer(**options).bounds == (0, 100)
    assert JudgeScorer(**options, style="yes_no").bounds == (0, 1)


def test_a_scorer_of_ones_own_has_none_until_it_says_so():
    @dataclass(frozen=True)
    class Mine(ResponseScorer):
        def score(self, sample):
            return Score(2.0)

    @dataclass(frozen=True)
    class Bounded(Mine):
        bounds: ClassVar = (0.0, 2.0)

    assert Mine().bounds is None
    assert Bounded().bounds == (0.0, 2.0)


def test_a_score_outside_its_scorers_bounds_fails_the_run():
    with pytest.raises(RunFailed, match=r"scores lie between 0 and 1, found 1\.5; correct the scorer's `bounds`"):
        _mean("full", "x", "m", [Score(0.5), Score(1.5)], (0.0, 1.0))
    assert _mean("full", "x", "m", [Score(1.0 + 1e-9)], (0.0, 1.0)).bounds == (0.0, 1.0)
    assert _mean("full", "x", "m", [Score(0.5), Score(None, "why")], None).per_response
