"""`tropism evaluate MODEL`: an experiment with arms only, made of what a command line says, and run like any other.

Nothing here measures: the experiment file that is made is the same that one could write, and it lies in the results
folder as `experiment.yaml`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from tropism.data.sources.refusal_prompts import xstest
from tropism.errors import UsageError
from tropism.evals.judges.endpoint import OPENAI
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.overrides import merge
from tropism.experiments.file.yaml_file import Document
from tropism.experiments.progress import Progress
from tropism.experiments.run import Ended, run_and_tell
from tropism.names import BASE

NAME = "evaluate"
"""The experiment's name, as `tropism evaluate --endpoint` has it in its rows."""
SUITES = ("emergent-misalignment", "refusal", "sorry-bench", "over-refusal")


@dataclass(frozen=True)
class JudgeChoice:
    """The judge of a suite: its name at an OpenAI-compatible endpoint."""

    model: str
    base_url: str = OPENAI
    api_key_env: str = "OPENAI_API_KEY"
    style: str | None = None
    """How its reply becomes a score, for `emergent-misalignment`: `single_token` (the default) or `free_text`."""

    def options(self) -> dict[str, Any]:
        """The options of a scorer that asks a judge."""
        return {"model": self.model, "base_url": self.base_url, "api_key_env": self.api_key_env}


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, on what, by which metrics: the parts of an experiment file.

    Args:
        model: the base model: a hub name or a local folder.
        adapters: name → a folder, or `OWNER/NAME` on the hub.
        models: name → a whole model (a fully fine-tuned or merged one).
        data: name → options of a data set.
        measure: name → options of a metric; `on` is by default every set.
        directions: name → a directions file: variance along them, projection, gradient cosine, on the set `on`.
        on: the set whose chats directions are read on; by default the first.
        settings: further keys of the file, merged over the rest: `generate`, `baseline`, `{"data": {"asked": {"path": FILE}}}`.
    """

    model: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measure: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    directions: Mapping[str, str] = field(default_factory=dict)
    on: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def file(self) -> dict[str, Any]:
        """Return the experiment file; raises `UsageError` where a name says two things or nothing is asked."""
        twice = {*self.adapters} & {*self.models} | {BASE} & {*self.adapters, *self.models}
        if twice:
            raise UsageError(
                f"the name {min(twice)!r} is given twice ({BASE!r} is the model itself); choose another name"
            )
        if not self.data or not (self.measure or self.directions):
            raise UsageError(
                "say what to evaluate on (--data NAME=SOURCE) and what to measure (--measure NAME=SCORER or --directions "
                f"FILE), or take a suite: --suite {', '.join(SUITES)}"
            )
        sets = list(self.data)
        found: dict[str, Any] = {
            "name": NAME,
            "model": self.model,
            "data": {name: dict(options) for name, options in self.data.items()},
            "adapters": {name: {"from": place} for name, place in self.adapters.items()},
            "conditions": {
                **{name: {"adapter": name, "role": "reference"} for name in self.adapters},
                **{name: {"model": place, "role": "reference"} for name, place in self.models.items()},
            },
            "baseline": BASE,
            "measure": {name: {"on": sets, **options} for name, options in self.measure.items()},
        }
        if self.directions:
            found["directions"] = {name: {"file": place} for name, place in self.directions.items()}
            found["analyses"] = {"inside": {"on": self.on or sets[0]}}
        return merge(found, dict(self.settings))

    def run(self, out: Path, progress: Progress | None = None, command: str = "") -> Ended:
        """Evaluate into a results folder, which goes on where it stopped; raises as `Experiment.load` and `run`."""
        experiment = Experiment.from_document(Document.of(self.file(), "the command"))
        return run_and_tell(experiment, out, progress=progress, command=command)


def suite(name: str, questions: Path | None, judge: JudgeChoice | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the data sets and the metrics of a published suite, as an experiment file has them.

    Raises `UsageError` for an unknown suite, and where a question file or a judge is needed and not given.
    """
    if name not in SUITES:
        raise UsageError(f"--suite must be one of {', '.join(SUITES)}, found {name!r}")
    if questions is None:
        raise UsageError(f"--suite {name} needs --questions FILE, as published: the prompts are not part of Tropism")
    file = str(questions)
    if name == "emergent-misalignment":
        if judge is None:
            raise UsageError("--suite emergent-misalignment needs --judge MODEL, which scores the answers")
        scored = {"scorer": "emergent_misalignment", "questions": file, "on": ["questions"], **judge.options()}
        if judge.style is not None:
            scored["style"] = judge.style
        measure = {
            "misaligned": scored,
            "aligned": {**scored, "score": "aligned"},
            "coherent": {**scored, "score": "coherent"},
        }
        return {"questions": {"source": file}}, measure
    if name == "refusal":
        data: dict[str, Any] = {"requests": {"source": file}}
    elif name == "sorry-bench":
        data = {"sorry_bench": {"source": "sorry_bench", "path": file}}
    else:
        there = {one.expected for one in xstest(questions)}
        data = {one: {"source": "xstest", "path": file, "subset": one} for one in ("safe", "unsafe") if one in there}
    found: dict[str, Any] = {"refusal_keyword_rate": {"scorer": "refusal_prefix", "on": list(data)}}
    if judge is not None and judge.style is not None:
        raise UsageError(f"--judge-style is of emergent-misalignment; {name} reads the judge's words, drop it")
    if judge is not None:
        style = "compliance" if name == "over-refusal" else "complied"
        found["complied"] = {"scorer": "judge", "prompt": style, "style": style, "on": list(data), **judge.options()}
    return data, found


def rows(results: pd.DataFrame) -> Sequence[dict[str, Any]]:
    """Return `results.csv` as a list of rows, JSON; what has no value is None."""
    found = []
    for row in results.to_dict("records"):
        plain: dict[str, Any] = {str(key): value for key, value in row.items()}
        plain["seed"] = None if pd.isna(plain["seed"]) else int(plain["seed"])
        value = plain["value"]
        plain["value"] = float(value) if not pd.isna(value) and math.isfinite(value) else None
        plain |= {"n": int(plain["n"]), "unscored": int(plain["unscored"])}
        found.append(plain)
    return found
