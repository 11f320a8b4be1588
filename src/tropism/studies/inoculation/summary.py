"""A study as text (`summary.md`) and as one tidy table (`pressure_metrics.csv`), from its tables alone."""

import pandas as pd

from tropism.studies.inoculation.rules import InoculationStudy


def summary(study: InoculationStudy, title: str = "Inoculation: pressure and drift") -> str:
    """Markdown: the verdict, the numbers it rests on, the tables, the caveats."""
    neutral, inoculation, placebo = study.conditions
    means = study.means[study.means["site"] == study.site]
    lines = [
        f"# {title}", "",
        f"**Verdict: {study.verdict.outcome}.** {study.verdict.sentence}", "",
        f"Conditions: {neutral} (neutral), {inoculation} (inoculation), {placebo} (placebo). Differences are paired "
        "by chat; "
        f"intervals are of 95 %.", "",
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


def tidy(study: InoculationStudy) -> pd.DataFrame:
    """All metrics, one a row: `table, site, contrast, metric, n, value, low, high, p`."""
    parts = [
        study.means.rename(columns={"condition": "contrast"}).assign(table="mean"),
        study.differences.assign(table="difference", metric="pressure"),
        study.matched.rename(columns={"method": "metric"}).assign(table="at equal loss", site=study.site),
        study.controls.rename(columns={"kind": "metric", "draws": "n"}).assign(table="random directions"),
        study.drift.rename(columns={"seeds": "n"}).assign(table="drift", site=""),
        study.correlations.assign(
            table="correlation", site="", contrast="runs", metric=lambda t: t["metric"] + " " + t["method"]
        ).rename(columns={"runs": "n", "r": "value"}),
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
