"""The end of an experiment: each analysis concludes from the tables, then the report is drawn. No weights are loaded."""

import json
from functools import partial
from typing import Any

import pandas as pd

from tropism.experiments import prepare
from tropism.experiments.analyses import RENAMED, Study, load_analyses
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.grid_section import grid_section
from tropism.experiments.identity import digest
from tropism.experiments.kept import file_hash, read_json_object
from tropism.experiments.plan import plan
from tropism.experiments.prepared import EvaluationSets
from tropism.experiments.problems import noted
from tropism.experiments.progress import Progress
from tropism.experiments.store import Folder
from tropism.names import VERSION
from tropism.results import sequential
from tropism.results.problem import Problem
from tropism.results.section import Section

MADE_OF = ".report.json"
"""The file that says what the report was drawn from."""


def summarise(
    experiment: ExperimentSpec, folder: Folder, tokenizer: Any, results: pd.DataFrame, progress: Progress
) -> None:
    """Write every analysis' section and draw the report.

    An analysis that cannot conclude has a section that says why; the others, and the report, are made all the same.
    Analyses get the measurements that have a value: what was not scored is never read as a number.
    """
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
    scored = results[results["value"].notna()].reset_index(drop=True)
    problems: list[Problem] = []
    for name, analysis in load_analyses(experiment).items():
        section = None
        before = len(problems)
        with noted(problems, "analysis", name):
            section = analysis.summarise(study, scored)
        for problem in problems[before:]:
            progress.say(str(problem))
            section = Section(RENAMED.get(name, name), f"{name}: not computed", f"Not computed: {problem.reason}.")
        if section is not None:
            section.save(folder.path)
    if (grid := grid_section(experiment, scored, folder.path / "figures")) is not None:
        grid.save(folder.path)
    progress.say("drawing the report")
    reports.build(folder.path)
    made = {"made_of": _made_of(experiment, folder), "problems": [str(problem) for problem in problems]}
    folder.write(MADE_OF, json.dumps(made))


def analysis_problems(folder: Folder) -> list[str]:
    """Return which analyses could not conclude when the report was drawn, and why."""
    return [str(line) for line in (read_json_object(folder.path / MADE_OF) or {}).get("problems", [])]


def is_summarised(experiment: ExperimentSpec, folder: Folder) -> bool:
    """Whether the report was drawn from what the folder holds now, by this process or another."""
    held = read_json_object(folder.path / MADE_OF) or {}
    return (folder.path / "report.html").is_file() and held.get("made_of") == _made_of(experiment, folder)


def _made_of(experiment: ExperimentSpec, folder: Folder) -> str:
    """Return a hash of all that the report is drawn from: the experiment, its tables and how each run ended."""
    files = [folder.path / "experiment.yaml", folder.path / "results.csv"]
    # Only where there is one, so that older reports need not be drawn again.
    files += [folder.path / sequential.NAME] if (folder.path / sequential.NAME).is_file() else []
    files += [folder.run_path(key) / name for key in plan(experiment) for name in ("DONE.json", "FAILED.json")]
    return digest([VERSION, *(file_hash(file) if file.is_file() else None for file in files)])


def _no_model() -> Any:
    raise AssertionError("an analysis concludes from tables: nothing is measured on a model any more")
