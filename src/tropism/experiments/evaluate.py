"""Evaluates one run from its adapter on disk, or what answers in its place: generate, score, record every sample."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from tropism.atomic import write_text
from tropism.data.batches import batches, padding_id
from tropism.data.chats import Chat, Example
from tropism.data.generation import Answer
from tropism.data.render import render_prompt
from tropism.errors import RunFailed
from tropism.evals.scorers.base import AnyScorer, ModelScorer, ResponseScorer, Sample, Score
from tropism.evals.scorers.registry import load_scorer
from tropism.experiments.analyses import Measurement
from tropism.experiments.answering import Answers, answering
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.problems import noted
from tropism.experiments.progress import Progress
from tropism.experiments.scoring import by_model
from tropism.experiments.subject import Subject
from tropism.experiments.team import ALONE, Team
from tropism.interventions.routing_modes import MODES, verify_mode
from tropism.results.problem import Problem
from tropism.stats.estimates import Bounds

VERIFIED_ON = 4
"""On how many prompts an ablation mode must change a logit."""
ROUNDING = 1e-6
"""How far a score may lie outside the bounds of its scorer, by float arithmetic alone."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    measurements: list[Measurement]
    """The means; of what a subject cannot have there is none, which is said."""
    problems: list[Problem]
    """Which metrics have no value, and why."""
    cut: dict[str, tuple[int, int]]
    """Evaluation set → how many answers were cut off at `max_new_tokens`, of how many."""


def evaluate(
    experiment: ExperimentSpec,
    subject: Subject,
    data: Callable[[str], list[Example]],
    path: Path,
    identity: Mapping[str, Any],
    progress: Progress,
    team: Team = ALONE,
) -> Evaluated:
    """Take every metric on every set it is asked on, in every mode; write `responses.jsonl`.

    Of several processes (`team`) all do this at once: each generates and scores with the model its share, judges are asked
    by the first, and it alone writes. What the others return is not whole.

    The guard is not attached: what is measured is the adapter alone. A metric that such a subject cannot have is left
    out, which is said. Raises `GuardNotInForce` where an ablation mode changes nothing, so that ablating would look like
    removing.
    """
    scorers = _scorers(experiment, subject, identity, progress)
    asked = {name for metric in scorers for name in experiment.measure[metric].on}
    sets = {name: data(name) for name in experiment.data if name in asked}
    trained, tokenizer = subject.trained, subject.tokenizer
    # Unmerged, for what reads the model itself; loaded where something does.
    scoring = cache(lambda: trained.load(subject.fresh_model()))
    if trained.two and sets:
        _verify_modes(scoring(), tokenizer, next(iter(sets.values())), experiment.template_kwargs)
    records: list[dict[str, Any]] = []
    measurements: list[Measurement] = []
    problems: list[Problem] = []
    cut: dict[str, tuple[int, int]] = {}
    for mode in trained.modes:
        responses = _answers(experiment, scorers, sets, subject, mode, progress, team)
        for name, given in responses.items():
            before, asked_before = cut.get(name, (0, 0))
            cut[name] = (before + _cut_off(given), asked_before + len(given))
        for name, examples in sets.items():
            answered = responses.get(name)
            scores: dict[str, list[Score]] = {}
            for metric, scorer in scorers.items():
                if name not in experiment.measure[metric].on:
                    continue
                if isinstance(scorer, ModelScorer):
                    progress.phase(f"scoring {metric} on {name}", 0, len(examples))
                found = len(problems)
                with noted(problems, "metric", metric, name, mode):
                    scores[metric] = _scores(
                        scorer, examples, answered, subject, scoring, mode, experiment.template_kwargs, team
                    )
                    measurements.append(_mean(mode, name, metric, scores[metric], scorer.bounds))
                    problems += _unscored(mode, name, metric, scores[metric])
                if len(problems) > found and problems[found].again:
                    scores.pop(metric, None)
                    measurements.append(Measurement(name, metric, None, 0, len(examples), mode, per_response=True))
            records += _records(identity, mode, name, examples, answered, scores)
    if not team.first:
        return Evaluated(measurements, problems, cut)
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records]
    write_text(path / "responses.jsonl", "".join(lines))
    return Evaluated(measurements, problems, cut)


def _cut_off(answers: Answers) -> int:
    return sum(answer is not None and answer.finished is False for answer in answers)


def _scorers(
    experiment: ExperimentSpec, subject: Subject, identity: Mapping[str, Any], progress: Progress
) -> dict[str, AnyScorer]:
    """The scorers of the metrics that this subject can have; of the others it is said why not."""
    scorers = {name: load_scorer(m.scorer, m.options()) for name, m in experiment.measure.items()}
    for name, scorer in list(scorers.items()):
        if why := subject.lacks(scorer):
            progress.say(f"{identity['condition']}: {name} is not measured: {why}")
            del scorers[name]
    return scorers


def _verify_modes(model: Any, tokenizer: Any, examples: Sequence[Example], kwargs: Mapping[str, Any]) -> None:
    """Raise `GuardNotInForce` where an ablation mode changes no logit of a few prompts."""
    rendered = [render_prompt(tokenizer, e.prompt, template_kwargs=kwargs) for e in examples[:VERIFIED_ON]]
    device = next(model.parameters()).device
    inputs = next(batches(rendered, VERIFIED_ON, pad_id=padding_id(tokenizer), device=device)).inputs
    for mode in MODES[1:]:
        verify_mode(model, inputs, mode)


def _answers(
    experiment: ExperimentSpec,
    scorers: Mapping[str, AnyScorer],
    sets: Mapping[str, list[Example]],
    subject: Subject,
    mode: str,
    progress: Progress,
    team: Team,
) -> dict[str, Answers]:
    """Return the responses to the prompts of every set that a metric needs them of, in one mode."""
    prompts = {
        name: [example.prompt for example in sets[name]] for name in sets if generates(experiment, scorers, name)
    }
    if not prompts:
        return {}
    parts = team.gathered(partial(_my_answers, experiment, prompts, subject, mode, progress, team))
    return {
        name: [_given(answers) for answers in zip(*(part[name] for part in parts), strict=True)] for name in prompts
    }


def _my_answers(
    experiment: ExperimentSpec,
    prompts: Mapping[str, Sequence[Chat]],
    subject: Subject,
    mode: str,
    progress: Progress,
    team: Team,
) -> dict[str, Answers]:
    """The responses that this process gives, None in the place of the others'.

    Greedy prompts are shared out in batches. What is drawn comes from one stream for a whole set, so of those each sample of
    a set is one process's.
    """
    samples, drawn = experiment.generate.samples, experiment.generate.temperature > 0
    responses: dict[str, Answers] = {name: [] for name in prompts}
    with answering(experiment, subject, mode, team) as answer:
        for number, (name, sample) in enumerate(product(prompts, range(samples))):
            if drawn and not team.takes(number):
                responses[name] += [None] * len(prompts[name])
                continue
            which = "" if samples == 1 else f", sample {sample + 1}"
            responses[name] += answer(prompts[name], sample, partial(progress.phase, f"answering {name}{which}"))
    return responses


def _given(answers: Sequence[Answer | None]) -> Answer | None:
    """The one answer to a prompt among those of all processes; None where there is none."""
    return next((answer for answer in answers if answer is not None), None)


def _scores(
    scorer: AnyScorer,
    examples: Sequence[Example],
    responses: Answers | None,
    subject: Subject,
    scoring: Callable[[], Any],
    mode: str,
    template_kwargs: Mapping[str, Any],
    team: Team,
) -> list[Score]:
    """Score every example of a set by one metric: its generated responses, or its reference where the scorer reads that.

    Where an endpoint gave no answer there is nothing to score.
    """
    texts: list[str | None]
    if isinstance(scorer, ResponseScorer) or _reads_generated(scorer):
        texts = [""] * len(examples) if responses is None else [None if r is None else r.text for r in responses]
    else:
        texts = [example.response or "" for example in examples]
    samples = [
        _sample(examples[place % len(examples)], text, template_kwargs)
        for place, text in enumerate(texts)
        if text is not None
    ]
    if isinstance(scorer, ResponseScorer):
        found = [scorer.score(sample) for sample in samples]
    else:
        found = by_model(scorer, samples, subject, scoring, mode, team)
    scores = iter(found)
    return [Score(None, "the endpoint gave no answer") if text is None else next(scores) for text in texts]


def generates(experiment: ExperimentSpec, scorers: Mapping[str, AnyScorer], name: str) -> bool:
    """Whether a metric needs responses to the prompts of a set."""
    return any(
        name in experiment.measure[metric].on and (isinstance(scorer, ResponseScorer) or _reads_generated(scorer))
        for metric, scorer in scorers.items()
    )


def _reads_generated(scorer: AnyScorer) -> bool:
    return isinstance(scorer, ModelScorer) and scorer.text == "generated"


def _sample(example: Example, response: str, template_kwargs: Mapping[str, Any]) -> Sample:
    return Sample(example.id, example.prompt, response, example.target, example.labels, template_kwargs)


def _mean(mode: str, name: str, metric: str, scores: Sequence[Score], bounds: Bounds | None) -> Measurement:
    """Return the mean over what could be scored; None where nothing could, which is no zero."""
    _check_bounds(scores, bounds)
    values = [score.value for score in scores if score.value is not None]
    mean = statistics.fmean(values) if values else None
    unscored = len(scores) - len(values)
    return Measurement(name, metric, mean, len(values), unscored, mode, per_response=True, bounds=bounds)


def _unscored(mode: str, name: str, metric: str, scores: Sequence[Score]) -> list[Problem]:
    """Return the problem of a metric that has not one score, with the reasons."""
    if any(score.value is not None for score in scores):
        return []
    reasons = sorted({str(score.unscored) for score in scores})
    said = f"none of {len(scores)} samples could be scored ({'; '.join(reasons[:3])})"
    return [Problem("metric", metric, said, name, mode)]


def _check_bounds(scores: Sequence[Score], bounds: Bounds | None) -> None:
    """Raise `RunFailed` where a score lies outside of what its scorer says is possible."""
    if bounds is None:
        return
    for score in scores:
        if score.value is not None and not bounds[0] - ROUNDING <= score.value <= bounds[1] + ROUNDING:
            raise RunFailed(
                f"its scorer says that scores lie between {bounds[0]:g} and {bounds[1]:g}, found {score.value!r}; correct "
                f"the scorer's `bounds`"
            )


def _records(
    identity: Mapping[str, Any],
    mode: str,
    name: str,
    examples: list[Example],
    responses: Answers | None,
    scores: Mapping[str, list[Score]],
) -> Iterator[dict[str, Any]]:
    count = 1 if responses is None else len(responses) // len(examples)
    for place in range(count * len(examples)):
        sample, example = place // len(examples), examples[place % len(examples)]
        # A metric of the reference response has one score a prompt, whatever the samples: it stands with the first.
        scored = {metric: given[place] for metric, given in scores.items() if place < len(given)}
        answer = responses[place] if responses is not None else None
        yield {
            **identity, "mode": mode, "eval_set": name, "id": example.id, **({"sample": sample} if count > 1 else {}),
            "prompt": list(example.prompt),
            "response": None if answer is None else answer.text,
            "finished": None if answer is None else answer.finished, "target": example.target,
            "labels": dict(example.labels),
            "scores": {
                metric: {"value": one.value, "unscored": one.unscored, "explanation": one.explanation}
                for metric, one in scored.items()
            },
        }  # fmt: skip
