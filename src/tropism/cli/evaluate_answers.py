"""`tropism evaluate answers`: score answers that are there already."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tropism.cli.evaluate_models import parse_measures
from tropism.cli.experiments import RUNS_FAILED
from tropism.cli.options import AsJson, Columns, parse_columns

if TYPE_CHECKING:
    import pandas as pd

    from tropism.evals.scorers.base import AnyScorer


def answers(
    file: Annotated[
        Path, typer.Argument(help="File of rows with a question and an answer each, or of chats.", show_default=False)
    ],
    measure: Annotated[
        list[str],
        typer.Option(
            "--measure",
            help="NAME=SCORER, or NAME='{scorer: judge, prompt: code_vulnerability, model: M}'. Repeatable.",
        ),
    ],
    columns: Columns = None,
    out: Annotated[
        Path | None, typer.Option(help="Write every answer with its scores to this .csv or .json file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score answers that are there already, by rule or by a judge, without running a model.

    Exits with 3 if a metric could score none of them.
    """
    from tropism.errors import UsageError
    from tropism.evals.answers import check_scorer, read_answers, score_answers, summary
    from tropism.evals.scorers.registry import load_scorer

    if out is not None and out.suffix not in (".csv", ".json"):
        raise UsageError(f"--out must end in .csv or .json, found {out}")
    asked = parse_measures(measure)
    scorers = {
        name: load_scorer(options["scorer"], {key: value for key, value in options.items() if key != "scorer"})
        for name, options in asked.items()
    }
    for name, scorer in scorers.items():
        check_scorer(f"--measure {name}", scorer)
        scorer.check_ready()
    table = score_answers(read_answers(file, parse_columns(columns)), scorers)
    if out is not None:
        _write(table, out)
    means = summary(table, scorers)
    if as_json:
        print(json.dumps(means.to_dict("records")))
    else:
        _show(means, table, scorers)
        if out is not None:
            print(f"\nwritten to {out}")
    if (means["n"] == 0).any():
        raise SystemExit(RUNS_FAILED)


def _write(table: "pd.DataFrame", out: Path) -> None:
    from tropism.atomic import write_text

    if out.suffix == ".csv":
        write_text(out, table.to_csv(index=False, lineterminator="\n"))
    else:
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        write_text(out, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def _show(means: "pd.DataFrame", table: "pd.DataFrame", scorers: "dict[str, AnyScorer]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tropism.evals.answers import REASON
    from tropism.results.text import visible

    shown = Table("metric", "mean", "95 % interval", "scored", "unscored", box=None, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in means.to_dict("records"):
        value = "–" if row["value"] is None else f"{row['value']:.3g}"
        spread = "–" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}"
        shown.add_row(escape(str(row["metric"])), value, spread, str(row["n"]), str(row["unscored"]))
    console = Console()
    console.print(shown)
    for name in scorers:
        reasons = table.loc[table[name + REASON] != "", name + REASON].value_counts()
        for reason, count in reasons.items():
            console.print(f"unscored by {name}: {count} × {visible(str(reason))}", markup=False, soft_wrap=True)
