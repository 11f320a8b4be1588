"""Analyses: what an experiment asks beyond its metrics, plugged in by name under `analyses:`.

An analysis may look at the base model before training, at each trained model, and at the tables in the end; what it
concludes is a `Section` of the report: claims by rule, tables, figures.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from tropism.errors import SpecError
from tropism.experiments.file.spec import ExperimentSpec
from tropism.results.measurement import Measurement as Measurement
from tropism.results.section import Section

if TYPE_CHECKING:
    from tropism.data.chats import Example
    from tropism.directions.artifact import Directions
    from tropism.directions.parameter import ParameterDirections


@dataclass(frozen=True)
class Study:
    """What an analysis can see of the experiment as a whole."""

    experiment: ExperimentSpec
    folder: Path
    tokenizer: Any
    fresh_model: Callable[[], Any]
    """Loads the start model anew: the base, with `start_from` merged in."""
    data: Callable[[str], "list[Example]"]
    """The examples of an evaluation set."""
    train_data: Callable[[str, int], "list[Example]"]
    """The training examples of a condition for a seed, as its model sees them (system prompt included)."""
    directions: Mapping[str, "Directions"] = field(default_factory=dict)
    parameter_directions: Mapping[str, "ParameterDirections"] = field(default_factory=dict)
    say: Callable[[str], None] = lambda _: None
    """Reports progress in a line."""


@dataclass(frozen=True)
class TrainedRun:
    """One condition × seed (seed None: the untrained model), its adapter loaded from disk."""

    study: Study
    condition: str
    seed: int | None
    folder: Path
    model: Any


class Analysis(BaseModel):
    """Abstract: an analysis with its options as fields. Every step has a default that does nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    per_run: ClassVar[bool] = False
    """Whether it measures each run, so that changing its options evaluates the runs again."""
    summary_only: ClassVar[frozenset[str]] = frozenset()
    """Options that `measure` does not read: changing them evaluates nothing again."""

    def check(self, experiment: ExperimentSpec) -> None:
        """Raise `SpecError` where the experiment lacks what the analysis needs."""

    def reads_directions(self, experiment: ExperimentSpec) -> list[str]:
        """The directions that `measure` reads: a run whose measurement read others is evaluated again."""
        return []

    def before(self, study: Study) -> None:
        """Once, on the untrained model, before any training; keeps what it finds under `study.folder`."""

    def measure(self, run: TrainedRun) -> Iterable[Measurement]:
        """After each run's evaluation; files go into `run.folder`, rows into `results.csv`."""
        return ()

    def callbacks(self, study: Study, condition: str, seed: int, log: Path) -> list[Any]:
        """Trainer callbacks for a run (a probe that reads every N steps, say)."""
        return []

    def summarise(self, study: Study, results: pd.DataFrame) -> Section | None:
        """In the end, from the table of all measurements: the section of the report.

        `results` has the columns `tropism.results.measurement.TYPED_COLUMNS`.
        """
        return None


ANALYSES: dict[str, str] = {
    "concept_ablation": "tropism.studies.concept_ablation.study:ConceptAblationStudy",
    "refusal": "tropism.studies.refusal.study:RefusalStudy",
    "inoculation": "tropism.studies.inoculation.study:InoculationStudy",
    "routing": "tropism.studies.routing.study:RoutingStudy",
    "inside": "tropism.studies.inside.study:InsideStudy",
    "stress": "tropism.studies.stress.study:StressStudy",
}
"""The name in a file → `module:Class`, imported when asked for."""

RENAMED = {"pressure": "inoculation"}
"""Older names of analyses, which files may still use."""


def known_analysis(name: str) -> bool:
    """Whether an analysis has this name, or had it."""
    return RENAMED.get(name, name) in ANALYSES


def identity_name(name: str) -> str:
    """Return the name under which an analysis counts in a run's identity: the first one it had.

    So the older name and the newer one are the same analysis, and finished runs stay finished.
    """
    first = {newer: older for older, newer in RENAMED.items()}
    return first.get(name, name)


def analysis_class(name: str) -> type[Analysis]:
    """Return the class of an analysis by its name; raises `SpecError`."""
    if not known_analysis(name):
        raise SpecError(f"no analysis is called {name!r}; available: {', '.join(ANALYSES) or 'none'}")
    module, _, attribute = ANALYSES[RENAMED.get(name, name)].partition(":")
    cls: type[Analysis] = getattr(import_module(module), attribute)
    return cls


def load_analysis(name: str, options: Mapping[str, Any]) -> Analysis:
    """Return the analysis of that name with its options checked; raises `SpecError`."""
    cls = analysis_class(name)
    for key in options:
        if key not in cls.model_fields:
            raise SpecError(
                f"analysis {name!r} has no option {key!r}; its options are {', '.join(cls.model_fields) or 'none'}"
            )
    try:
        return cls.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"analysis {name!r}: {where}: {first['msg']}, found {first['input']!r:.60}") from None


def load_analyses(experiment: ExperimentSpec) -> dict[str, Analysis]:
    """Return the analyses that an experiment asks for, by name."""
    return {name: load_analysis(name, options or {}) for name, options in experiment.analyses.items()}
