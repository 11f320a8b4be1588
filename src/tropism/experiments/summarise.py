"""The end of an experiment: each analysis concludes from the tables, then the report is drawn. No weights are loaded."""

from functools import partial
from typing import Any

import pandas as pd

from tropism.experiments import prepare
from tropism.experiments.analyses import Study, load_analyses
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.prepared import EvaluationSets
from tropism.experiments.progress import Progress
from tropism.experiments.store import Folder


def summarise(
    experiment: ExperimentSpec, folder: Folder, tokenizer: Any, results: pd.DataFrame, progress: Progress
) -> None:
    """Write every analysis' section and draw the report."""
    from tropism import reports

    study = Study(
        experiment,
        folder.path,
        tokenizer,
        _no_model,
        EvaluationSets(experiment),
        partial(prepare.training_examples, experiment),
        say=progress.say,
    )
    for analysis in load_analyses(experiment).values():
        section = analysis.summarise(study, results)
        if section is not None:
            section.save(folder.path)
    progress.say("drawing the report")
    reports.build(folder.path)


def _no_model() -> Any:
    raise AssertionError("an analysis concludes from tables: nothing is measured on a model any more")
