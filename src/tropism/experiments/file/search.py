"""`search:` in an experiment file: the rules it must keep, and which way its metric is better."""

from tropism.experiments.file.complaints import At, listed
from tropism.experiments.file.spec import ExperimentSpec, SearchSpec


def check_search(e: ExperimentSpec, search: SearchSpec) -> None:
    """Raise `At` for a search that has no grid, no metric, or no two sets that the metric is taken on."""
    if not e.grid:
        raise At(("search",), "chooses a cell of a grid, and there is none; give the values to try under 'grid:'")
    if search.metric not in e.measure:
        raise At(("search", "metric"), f"no metric is called {search.metric!r}; available: {listed(e.measure)}")
    on = e.measure[search.metric].on
    for option, name in (("on", search.on), ("report", search.report)):
        if name not in on:
            raise At(
                ("search", option),
                f"must be a set that {search.metric} is taken on, found {name!r}; these are {listed(on)}",
            )
    if search.on == search.report:
        raise At(
            ("search", "report"),
            f"must be another set than the one that is chosen on, found {search.report!r} for both: the best of several "
            f"looks better than it is where it was chosen",
        )
    better(e, search)


def better(e: ExperimentSpec, search: SearchSpec) -> str:
    """Return `higher` or `lower`; raise `At` where neither the file nor the scorer says which."""
    from tropism.evals.scorers.base import ModelScorer
    from tropism.evals.scorers.registry import load_scorer

    measure = e.measure[search.metric]
    scorer = load_scorer(measure.scorer, measure.options())
    lower = measure.unwanted or (isinstance(scorer, ModelScorer) and scorer.lower_is_better)
    if search.better is None and not (lower or measure.wanted):
        raise At(
            ("search", "better"),
            f"is required: {search.metric} is marked neither wanted nor unwanted; give higher or lower",
        )
    return search.better or ("lower" if lower else "higher")
