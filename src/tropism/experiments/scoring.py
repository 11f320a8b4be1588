"""Scores by a model: the one that is evaluated, the one that it is compared with, or a judge's."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from tropism.errors import RunFailed
from tropism.evals.scorers.base import ModelScorer, Sample, Score
from tropism.experiments.subject import Subject
from tropism.experiments.team import Team
from tropism.interventions.routing_modes import ablation_mode


def by_model(
    scorer: ModelScorer,
    samples: Sequence[Sample],
    subject: Subject,
    scoring: Callable[[], Any],
    mode: str,
    team: Team,
) -> list[Score]:
    """Score samples by a model, each process its share; what runs no model (a judge) is asked by the first alone."""
    if scorer.runs == "nothing":
        if not team.first:
            return [Score(None, "asked by another process")] * len(samples)
        return _one_a_sample(scorer, None, subject.tokenizer, samples)
    parts = team.gathered(partial(_my_scores, scorer, samples[team.rank :: team.of], subject, scoring, mode))
    scores: list[Any] = [None] * len(samples)
    for rank, part in enumerate(parts):
        scores[rank :: team.of] = part
    return scores


def _my_scores(
    scorer: ModelScorer, samples: Sequence[Sample], subject: Subject, scoring: Callable[[], Any], mode: str
) -> list[Score]:
    """Score samples with the model that the scorer runs: the subject's, or the base model's."""
    if not samples:
        return []
    if scorer.runs == "base" and subject.base is not None:
        model, tokenizer = subject.base()
        return _one_a_sample(scorer, model, tokenizer, samples)
    model = scoring()
    with ablation_mode(model, mode) if subject.trained.two else nullcontext():
        return _one_a_sample(scorer, model, subject.tokenizer, samples)


def _one_a_sample(scorer: ModelScorer, model: Any, tokenizer: Any, samples: Sequence[Sample]) -> list[Score]:
    found = scorer.score_all(model, tokenizer, samples) if samples else []
    if len(found) != len(samples):
        raise RunFailed(f"its scorer must return one score a sample, found {len(found)} for {len(samples)}")
    return found
