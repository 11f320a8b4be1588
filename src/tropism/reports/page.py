"""Prepare what the page shows; the template only lays it out.

The page is one file that opens offline: style, script, figures and data are inside. The Content-Security-Policy allows
our script and our style by their hashes and nothing else, so text from a model could not run or load anything even if
escaping failed.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from tropism.names import BASE
from tropism.reports.directions import view
from tropism.reports.responses import browser
from tropism.reports.strip import Strip, strips
from tropism.results.caveats import caveats
from tropism.results.folder import ExperimentFolder
from tropism.results.roles import Role, role_of
from tropism.results.section import Section
from tropism.results.summary import arms, baseline_name
from tropism.results.text import count, number, rate, span, visible, words
from tropism.results.verdict import answer
from tropism.stats import EXACT


@dataclass(frozen=True)
class Drawn:
    """A figure on the page."""

    name: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Figures:
    """The figures of a report, by the part of the page that they belong to."""

    tradeoff: Sequence[Drawn]
    training: Sequence[Drawn]
    directions: Mapping[str, Sequence[Drawn]]
    analyses: Mapping[str, Sequence[Drawn]]


@dataclass(frozen=True)
class Cell:
    """One entry of the table of results."""

    label: str
    mark: str
    value: str
    interval: str
    difference: str
    difference_interval: str
    tone: str
    """`good`, `bad` or empty: the direction of a difference whose interval excludes 0."""
    note: str
    strip: Strip | None


@dataclass(frozen=True)
class Column:
    """A metric on an evaluation set."""

    metric: str
    eval_set: str
    mark: str


def render(folder: ExperimentFolder, summary: pd.DataFrame, analyses: Sequence[Section], figures: Figures) -> str:
    """Return the report as one HTML text."""
    style, script = _resource("report.css"), _resource("report.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"report.html.j2": _resource("report.html.j2")}),
        autoescape=True,
        # A name that the template misspells must raise, not print nothing.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "words": words, "number": number}
    columns = _columns(summary)
    lead, figures = _lead(figures, folder.analyses)
    question = visible(folder.experiment.get("question") or folder.name)
    labelled = arms(folder.results, folder.experiment)
    return environment.get_template("report.html.j2").render(
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        name=visible(folder.name),
        question=question,
        answer=answer(summary, folder.experiment),
        studies=folder.analyses,
        lead=lead,
        facts=_facts(folder),
        columns=columns,
        rows=_rows(summary, columns, folder.experiment),
        figures=figures,
        analyses=analyses,
        validity=[view(name, report) for name, report in folder.validity.items()],
        caveats=caveats(folder, summary),
        rendered=_rendered(folder),
        runs=_runs(folder),
        environment=_environment(folder),
        experiment=visible(yaml.safe_dump(folder.experiment, sort_keys=False, allow_unicode=True)),
        command=visible(folder.environment.get("command") or "tropism run experiment.yaml --out reproduced"),
        data=browser(folder.responses, labelled),
        responses=bool(folder.responses),
    )


def _lead(figures: Figures, studies: Sequence[Section]) -> tuple[Drawn | None, Figures]:
    """Choose the figure of the first screen, the one a study leads with or else the last trade-off; and the others."""
    for study in studies:
        for lead in figures.analyses.get(study.name, ()):
            if lead.name == study.lead:
                others = [one for one in figures.analyses[study.name] if one is not lead]
                return lead, replace(figures, analyses={**figures.analyses, study.name: others})
    if figures.tradeoff:
        return figures.tradeoff[-1], replace(figures, tradeoff=figures.tradeoff[:-1])
    return None, figures


def _resource(name: str) -> str:
    return files("tropism.reports").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _columns(summary: pd.DataFrame) -> list[Column]:
    found = summary[["metric", "eval_set", "mark"]].drop_duplicates()
    return [Column(*map(str, row)) for row in found.itertuples(index=False, name=None)]


def _rows(summary: pd.DataFrame, columns: Sequence[Column], experiment: dict[str, Any]) -> list[dict[str, Any]]:
    drawn = strips(summary, baseline_name(experiment))
    rows = []
    for arm, mine in summary.groupby("arm", sort=False):
        cells = []
        for column in columns:
            found = mine[(mine["metric"] == column.metric) & (mine["eval_set"] == column.eval_set)]
            label = f"{words(column.metric)}, {words(column.eval_set)}"
            key = (str(arm), column.metric, column.eval_set)
            cells.append(
                Cell(label, column.mark, "", "", "", "", "", "not measured", None)
                if found.empty
                else _cell(found.iloc[0].to_dict(), label, drawn.get(key))
            )
        role = role_of(experiment, str(mine["condition"].iloc[0]))
        rows.append({"arm": words(str(arm)), "role": str(role), "guard": role is Role.GUARD, "cells": cells})
    return rows


def _cell(row: Mapping[Any, Any], label: str, strip: Strip | None) -> Cell:
    low, high = row["difference_low"], row["difference_high"]
    # Coloured where the interval excludes zero; only a marked metric has a good side.
    tone = ""
    if row["mark"] and pd.notna(low) and (low > 0 or high < 0):
        tone = "good" if (high < 0) == (row["mark"] == "unwanted") else "bad"
    note = ""
    if row["over"] in ("prompts", EXACT):
        note = f"interval over {row['over']}"
    elif not row["over"]:
        note = "no interval"
    change = rate(row["difference"], signed=True) if pd.notna(row["difference"]) else ""
    return Cell(
        label,
        row["mark"],
        rate(row["value"]),
        span(row["low"], row["high"]),
        change,
        span(low, high, signed=True),
        tone,
        note,
        strip,
    )


def _facts(folder: ExperimentFolder) -> list[str]:
    model = folder.experiment.get("model") or (folder.environment.get("model") or {}).get("name") or "unknown model"
    facts = [visible(model), _extent(folder)]
    if len(folder.responses):
        facts.append(count(len(folder.responses), "response"))
    finished = str(folder.environment.get("finished") or "")[:10]
    return facts + ([visible(finished)] if finished else [])


def _extent(folder: ExperimentFolder) -> str:
    """How much of the experiment there is: what the file asks for, and how much of it has finished where not all has."""
    asked = [run for run in folder.runs if run.condition != BASE]
    done = [run for run in asked if run.state == "done"]
    conditions = {run.condition for run in asked}
    if len(done) == len(asked):
        trained = [run for run in asked if run.seed is not None]
        seeds, there = len({run.seed for run in trained}), len(asked) - len(trained)
        said = (
            [f"{count(len(conditions) - there, 'condition')} × {count(seeds, 'seed')}"] if trained or not there else []
        )
        return ", ".join([*said, *([f"{count(there, 'condition')} without training"] if there else [])])
    ran = {run.condition for run in done}
    return f"{len(ran)} of {count(len(conditions), 'condition')}, {len(done)} of {count(len(asked), 'run')}"


def _runs(folder: ExperimentFolder) -> list[dict[str, str]]:
    rows = []
    for run in folder.runs:
        seed = "" if run.seed is None else str(run.seed)
        row = {"condition": words(run.condition), "seed": seed, "state": run.state, "error": visible(run.error)}
        rows.append(row)
    return rows


def _rendered(folder: ExperimentFolder) -> list[tuple[str, str, str]]:
    """(condition, the text of its first training example as rendered, its token ids)."""
    found = []
    for condition, one in folder.rendered.items():
        if isinstance(one, dict):
            ids = " ".join(map(str, one.get("input_ids", [])))
            found.append((words(condition), visible(one.get("text", "")), ids))
    return found


def _environment(folder: ExperimentFolder) -> list[tuple[str, str]]:
    return [(words(key), _plain(value)) for key, value in folder.environment.items() if key != "command"]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{visible(key)}: {_plain(part)}" for key, part in value.items())
    return visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
