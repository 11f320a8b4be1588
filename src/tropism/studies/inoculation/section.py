"""An inoculation study as a section of the report, and as the files that lie beside it."""

from pathlib import Path
from typing import Any

import pandas as pd

from tropism.atomic import write_text
from tropism.results.section import Claim, Section, Table
from tropism.studies.inoculation.figures import StudyTables, save_all
from tropism.studies.inoculation.rules import MEANS
from tropism.studies.inoculation.summary import summary, tidy


def write_study(tables: StudyTables, folder: Path) -> Section:
    """Write `summary.md`, `pressure_metrics.csv`, the figures and `analyses/inoculation.json` into a run's folder."""
    study = tables.study
    write_text(folder / "summary.md", summary(study))
    write_text(folder / "pressure_metrics.csv", tidy(study).to_csv(index=False))
    section = Section(
        name="inoculation",
        title="Inoculation: pressure and drift",
        summary=f"{study.verdict.outcome.capitalize()}: {MEANS[study.verdict.outcome]}.",
        claims=[
            Claim(
                "The inoculation prompt turns gradients away from the trait, and so less of it is learned",
                study.verdict.outcome,
                study.verdict.sentence,
                dict(study.verdict.numbers),
            )
        ],
        tables=[
            _table(
                "Pressure: paired differences at every site",
                study.differences,
                "95 % intervals over chats; Holm over sites",
            ),
            _table("Pressure at equal loss", study.matched, "At the reported site"),
            _table("Random directions", study.controls, "p: the share that drops at least as much"),
            _table("Drift", study.drift, "Paired by seed"),
            _table("Pressure against drift over runs", study.correlations, ""),
        ],
        figures=save_all(tables, folder / "figures"),
        notes=study.caveats,
        lead="inoculation_pressure_against_drift",
    )
    section.save(folder)
    return section


def _table(title: str, table: pd.DataFrame, note: str) -> Table:
    return Table(title, list(table.columns), [[_plain(v) for v in row] for row in table.itertuples(index=False)], note)


def _plain(value: Any) -> Any:
    """As JSON has it: numpy's numbers as Python's, missing as None."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return None
    return value.item() if hasattr(value, "item") else value  # numpy's scalars
