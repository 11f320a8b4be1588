"""Answers that are there already, in a file: scored by rule or by a judge, without any model of theirs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tropism import stats
from tropism.data import sources
from tropism.data.chats import Example
from tropism.errors import DataError, SpecError
from tropism.evals.scorers.base import AnyScorer, ModelScorer, ResponseScorer, Sample, Score
from tropism.evals.scorers.judge import JUDGE_SAYS

REASON = "_unscored"
"""What a metric's name ends in where a column has the reasons."""


def read_answers(path: str | Path, columns: Mapping[str, str] | None = None) -> list[Example]:
    """Read a file of rows with a question and an answer each, or chats; `columns` are as of a data set.

    Raises `DataError` where a row has no answer, and as `sources.load`.
    """
    if not Path(path).is_file():
        raise DataError(f"no file of answers at {path}")
    examples = sources.load(str(path), columns=columns)
    silent = [example.id for example in examples if example.response is None]
    if silent:
        raise DataError(
            f"{path}: {silent[0]} has no answer; it is the field completion, response, answer or output, or another column "
            "that --columns completion=NAME names"
        )
    return examples


def check_scorer(name: str, scorer: AnyScorer) -> None:
    """Raise `SpecError` for a metric that runs a model, which an answer alone does not have."""
    if isinstance(scorer, ModelScorer) and (scorer.text != "generated" or scorer.runs != "nothing"):
        raise SpecError(f"{name}: the scorer {scorer.name!r} runs the model, of which there are only answers here")


def score_answers(examples: Sequence[Example], scorers: Mapping[str, AnyScorer]) -> pd.DataFrame:
    """Score every answer by every metric.

    Returns a table of `id, question, answer`, and of each metric the column `METRIC` (a number, or a judge's label: CODE,
    REFUSAL) and `METRIC_unscored` (why there is no number; empty where there is one). A file of such rows with the columns
    `alignment` and `coherence` is what `tropism evaluate emergent-misalignment --judged` reads.

    Raises `SpecError` for a metric that runs a model.
    """
    for name, scorer in scorers.items():
        check_scorer(name, scorer)
    samples = [Sample(e.id, e.prompt, e.response or "", e.target, e.labels) for e in examples]
    table: dict[str, list[Any]] = {
        "id": [sample.id for sample in samples],
        "question": [_question(sample) for sample in samples],
        "answer": [sample.response for sample in samples],
    }
    for name, scorer in scorers.items():
        scores = _scores(scorer, samples)
        table[name] = [_cell(score) for score in scores]
        table[name + REASON] = [score.unscored or "" for score in scores]
    return pd.DataFrame(table)


def summary(table: pd.DataFrame, scorers: Mapping[str, AnyScorer]) -> pd.DataFrame:
    """Return `metric, value, low, high, n, unscored`: means of what has a number, with 95 % intervals over the answers."""
    rows = []
    for name, scorer in scorers.items():
        scored = table[name + REASON] == ""
        values = table.loc[scored, name].to_numpy(dtype=np.float64)
        found = None if not len(values) else stats.interval_within_seeds(values[None, :]).within(scorer.bounds)
        ends = (None, None, None) if found is None else (found.value, found.low, found.high)
        rows.append((name, *ends, len(values), int((~scored).sum())))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "unscored"]).astype(
        {"value": object, "low": object, "high": object}
    )


def _scores(scorer: AnyScorer, samples: Sequence[Sample]) -> list[Score]:
    if isinstance(scorer, ResponseScorer):
        return [scorer.score(sample) for sample in samples]
    no_model: Any = None
    return scorer.score_all(no_model, None, samples)


def _cell(score: Score) -> float | str | None:
    if score.value is not None:
        return score.value
    reason = score.unscored or ""
    return reason.removeprefix(JUDGE_SAYS) if reason.startswith(JUDGE_SAYS) else None


def _question(sample: Sample) -> str:
    asked = [str(message["content"]) for message in sample.prompt if message["role"] == "user"]
    return asked[-1] if asked else ""
