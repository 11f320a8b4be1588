"""What a study found as text (`summary.md`), as one tidy table (`pressure_metrics.csv`) and as a section of the report."""

from pathlib import Path

import pandas as pd

from tropism.atomic import write_text
from tropism.results.section import Claim, Section
from tropism.studies.inoculation.figures import StudyTables, save_all
from tropism.studies.inoculation.rules import MEANS, Findings
from tropism.studies.inoculation.tables import as_table

TITLE = "Inoculation: pressure and drift"


def write_study(tables: StudyTables, folder: Path) -> Section:
    """Write `summary.md`, `pressure_metrics.csv`, the figures and `analyses/inoculation.json` into the experiment's folder."""
    study = tables.study
    write_text(folder / "summary.md", summary(study))
    write_text(folder / "pressure_metrics.csv", tidy(study).to_csv(index=False))
    verdict = study.verdict
    found = Section(
        name="inoculation",
        title=TITLE,
        summary=f"{verdict.outcome.capitalize()}: {MEANS[verdict.outcome]}.",
        claims=[
            Claim(
                "The inoculation prompt turns gradients away from the trait, and so less of it is learned",
                verdict.outcome,
                verdict.sentence,
                dict(verdict.numbers),
            )
        ],
        tables=[
            as_table(
                "Pressure: paired differences at every site",
                study.differences,
                "95 % intervals over chats; Holm over sites",
            ),
            as_table("Pressure at equal loss", study.matched, "At the reported site"),
            as_table("Random directions", study.controls, "p: the share that drops at least as much"),
            as_table("Drift", study.drift, "Paired by seed"),
            as_table("Pressure against drift over runs", study.correlations, ""),
        ],
        figures=save_all(tables, folder / "figures"),
        notes=study.caveats,
        lead="inoculation_pressure_against_drift",
    )
    found.save(folder)
    return found


def summary(study: Findings, title: str = TITLE) -> str:
    """Write the study as Markdown: the verdict, the numbers it rests on, the tables, the caveats."""
    neutral, inoculation, placebo = study.conditions
    means = study.means[study.means["site"] == study.site]
    lines = [
        f"# {title}", "",
        f"**Verdict: {study.verdict.outcome}.** {study.verdict.sentence}", "",
        f"Conditions: {neutral} (neutral), {inoculation} (inoculation), {placebo} (placebo). Differences are paired "
        "by chat; intervals are of 95 %.", "",
        f"## At {study.site}", "", _markdown(means.drop(columns="site")), "",
        "## Differences of pressure, every site", "", _markdown(study.differences), "",
        "## At equal loss", "", _markdown(study.matched), "",
        "## Random directions", "",
        "How many random directions drop at least as much: p = (1 + b)/(1 + K).", "", _markdown(study.controls), "",
        "## Drift", "", _markdown(study.drift), "",
        "## Pressure against drift over runs", "", _markdown(study.correlations), "",
        "## Caveats", "", *(f"- {caveat}" for caveat in study.caveats), "",
    ]  # fmt: skip
    return "\n".join(lines)


def tidy(study: Findings) -> pd.DataFrame:
    """Put all metrics in one table, one per row: `table, site, contrast, metric, n, value, low, high, p`."""
    runs = study.correlations
    parts = [
        study.means.rename(columns={"condition": "contrast"}).assign(table="mean"),
        study.differences.assign(table="difference", metric="pressure"),
        study.matched.rename(columns={"method": "metric"}).assign(table="at equal loss", site=study.site),
        study.controls.rename(columns={"kind": "metric", "draws": "n"}).assign(table="random directions"),
        study.drift.rename(columns={"seeds": "n"}).assign(table="drift", site=""),
        runs.assign(table="correlation", site="", contrast="runs", metric=runs["metric"] + " " + runs["method"]).rename(
            columns={"runs": "n", "r": "value"}
        ),
    ]
    columns = ["table", "site", "contrast", "metric", "n", "value", "low", "high", "p"]
    rows = [record for part in parts for record in part.reindex(columns=columns).to_dict("records")]
    return pd.DataFrame(rows, columns=columns)


def _markdown(table: pd.DataFrame) -> str:
    head = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "|" + "---|" * len(table.columns)
    body = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in table.itertuples(index=False)]
    return "\n".join([head, rule, *body])


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
