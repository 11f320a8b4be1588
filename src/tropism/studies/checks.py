"""What the studies ask of an experiment file alike: that the names in their options are defined, and a metric's scorer."""

from collections.abc import Collection, Iterable

from tropism.errors import SpecError
from tropism.evals.scorers.base import AnyScorer, ModelScorer, ResponseScorer
from tropism.evals.scorers.registry import load_scorer
from tropism.experiments.file.spec import ExperimentSpec
from tropism.stats import Bounds


def check_conditions(experiment: ExperimentSpec, names: Iterable[str]) -> None:
    """Raise `SpecError` for the first name that is not a condition of the file, or one that nothing is trained for."""
    chosen = list(names)
    _check("condition is", chosen, experiment.conditions)
    for name in chosen:
        if name not in experiment.trained:
            raise SpecError(f"the condition {name!r} must be trained here, and names what is there already")


def check_metrics(experiment: ExperimentSpec, names: Iterable[str]) -> None:
    """Raise `SpecError` for the first name that is not a metric of the file."""
    _check("metric is", names, experiment.measure)


def check_directions(experiment: ExperimentSpec, names: Iterable[str]) -> None:
    """Raise `SpecError` for the first name that is not a set of directions in the file."""
    _check("directions are", names, experiment.directions)


def scorer_of(experiment: ExperimentSpec, metric: str) -> AnyScorer:
    """Return the scorer of a metric, with the file's options."""
    measure = experiment.measure[metric]
    return load_scorer(measure.scorer, measure.options())


def response_scorer(experiment: ExperimentSpec, metric: str, option: str = "trait") -> ResponseScorer:
    """Return the scorer of a metric of responses; raise `SpecError`, for the option, where it scores something else."""
    scorer = scorer_of(experiment, metric)
    if not isinstance(scorer, ResponseScorer):
        found = experiment.measure[metric].scorer
        raise SpecError(f"{option}: must be a metric that scores responses, found {metric!r} ({found})")
    return scorer


def answer_scorer(experiment: ExperimentSpec, metric: str, option: str = "trait") -> AnyScorer:
    """Return the scorer of a metric of generated answers, by rule or by a judge; raise `SpecError` for any other.

    A scorer that runs the model under evaluation, or the base model, is another.
    """
    scorer = scorer_of(experiment, metric)
    judged = isinstance(scorer, ModelScorer) and scorer.text == "generated" and scorer.runs == "nothing"
    if not judged and not isinstance(scorer, ResponseScorer):
        found = experiment.measure[metric].scorer
        raise SpecError(f"{option}: must be a metric that scores responses, found {metric!r} ({found})")
    return scorer


def shared_bounds(experiment: ExperimentSpec, metrics: Iterable[str]) -> Bounds | None:
    """Return the bounds that the scores of all these metrics have; None where they differ or one has none."""
    found = {scorer_of(experiment, metric).bounds for metric in metrics}
    return found.pop() if len(found) == 1 else None


def _check(what: str, names: Iterable[str], defined: Collection[str]) -> None:
    for name in names:
        if name not in defined:
            raise SpecError(f"no {what} called {name!r}; available: {', '.join(defined) or 'none'}")
