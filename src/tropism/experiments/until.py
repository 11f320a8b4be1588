"""`tropism run --until decided`: seeds are added until the intervals decide, by a plan that is fixed before the first look."""

from collections.abc import Sequence
from pathlib import Path

from tropism.errors import UsageError
from tropism.experiments.executors.spread import Executor
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.mirror import local_of
from tropism.experiments.progress import Progress
from tropism.experiments.run import Ended, run_and_tell
from tropism.results import sequential
from tropism.results.decided import undecided
from tropism.results.folder import load
from tropism.results.sequential import Sequential
from tropism.results.summary import summary_table
from tropism.stats import looks

MOST_NAMED = 3


def run_until_decided(
    experiment: ExperimentSpec | str | Path,
    out: str | Path,
    *,
    max_seeds: int,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    command: str = "",
    executor: Executor | None = None,
) -> Ended:
    """Run an experiment with three seeds, then one more at a time, until its questions are decided or `max_seeds` are run.

    The seeds are the file's, then the smallest numbers that it does not name. Which looks there will be and what each may
    spend is written into the folder (`sequential.json`); the report's intervals are those of the last look. The rule and
    its coverage: `tropism.stats.sequential`.

    Raises:
        UsageError: no metric is marked, fewer than three seeds at most, or a folder whose plan was another one.
    """
    if not isinstance(experiment, ExperimentSpec):
        experiment = Experiment.load(experiment)
    if not any(measure.wanted or measure.unwanted for measure in experiment.measure.values()):
        raise UsageError(
            "--until decided: no metric is marked wanted or unwanted, so there is nothing to decide; mark one under measure:"
        )
    out = local_of(out)
    plan, progress = _plan(out, max_seeds), progress or Progress()
    seeds = seeds_in_order(experiment.seeds, max_seeds)
    for look in plan.looks:
        progress.say(f"look at {look.seeds} of at most {max_seeds} seeds, intervals of {look.confidence:.2%}")
        some = experiment.model_copy(update={"seeds": seeds[: look.seeds]})
        ended = run_and_tell(
            some, out, only=only, progress=progress, command=command, plan_of_looks=plan, executor=executor
        )
        loaded = load(out)
        still = undecided(
            summary_table(loaded.results, loaded.experiment, loaded.scores, loaded.look), loaded.experiment
        )
        if not still:
            progress.say(f"decided with {look.seeds} seeds")
            return ended
        more = f" and {len(still) - MOST_NAMED} more" if len(still) > MOST_NAMED else ""
        progress.say(f"undecided: {'; '.join(still[:MOST_NAMED])}{more}")
    return ended


def seeds_in_order(given: Sequence[int], count: int) -> list[int]:
    """The seeds to use one after another: those given, then the smallest numbers that are not among them.

    >>> seeds_in_order([7, 1], 4)
    [7, 1, 0, 2]
    """
    free = (number for number in range(count + len(given)) if number not in given)
    return [*given, *free][:count]


def _plan(out: Path, max_seeds: int) -> Sequential:
    """The plan of looks; the folder's own where it has one, which must be the same."""
    plan = Sequential(looks(max_seeds))
    held = sequential.read(out)
    if held is not None and held.looks[-1].seeds != max_seeds:
        raise UsageError(
            f"--max-seeds: the looks in {out} were planned for at most {held.looks[-1].seeds} seeds, found {max_seeds}; the "
            f"most may not change after a look: give {held.looks[-1].seeds}, or another --out"
        )
    return plan
