"""`tropism evaluate lm-eval`: every arm of an experiment on tasks of the LM Evaluation Harness."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tropism.cli.options import AsJson

if TYPE_CHECKING:
    import pandas as pd


def lm_eval(
    folder: Annotated[Path, typer.Argument(help="A results folder, as `tropism run` writes it.", show_default=False)],
    tasks: Annotated[str, typer.Option(help="Tasks or groups: 'arc_easy,hellaswag'.", show_default=False)],
    conditions: Annotated[
        str | None,
        typer.Option(help="These conditions alone: 'base,baseline,caft'; by default all.", show_default=False),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question; by default as the task says.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many documents of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents at a time.")] = 8,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Ask through the chat template.")] = False,
    include: Annotated[
        Path | None, typer.Option(help="Folder with task files (YAML) of your own.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="CSV file to write; by default lm_eval.csv in the folder.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the untrained model and every finished run, in every mode, the tasks of the LM Evaluation Harness.

    Prints a row per arm and writes a CSV. Intervals over seeds and prompts are the experiment's own evaluation's alone; here
    the error is the harness's.
    """
    from rich.console import Console

    from tropism.atomic import replacing
    from tropism.cli.quiet import quiet

    quiet()
    from tropism.integrations.lm_eval import FILE, evaluate_lm_eval

    notes = Console(stderr=True, highlight=False)
    rows = evaluate_lm_eval(
        folder,
        _split(tasks),
        conditions=_split(conditions or ""),
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=batch_size,
        chat_template=chat_template,
        include=include,
        report=lambda line: notes.print(line, style="dim"),
    )
    target = out or folder / FILE
    with replacing(target) as partial:
        rows.to_csv(partial, index=False)
    if as_json:
        print(json.dumps({"rows": json.loads(rows.to_json(orient="records"))}))
        return
    _show(rows)
    notes.print(f"written to {target}", style="dim", soft_wrap=True)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _show(rows: "pd.DataFrame") -> None:
    """Print a row per arm and a column per metric, each value with its standard error."""
    import pandas as pd
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    columns = list(dict.fromkeys(zip(rows["eval_set"], rows["metric"], strict=True)))
    table = Table("condition", "seed", "mode", box=None, pad_edge=False)
    for task, metric in columns:
        table.add_column(escape(f"{task}\n{metric}"), justify="right")
    keys: Any
    for keys, mine in rows.groupby(["condition", "seed", "mode"], sort=False, dropna=False):
        condition, seed, mode = keys
        found = {(row.eval_set, row.metric): row for row in mine.itertuples()}
        cells = [_cell(found.get(column)) for column in columns]
        table.add_row(escape(str(condition)), "" if pd.isna(seed) else f"{seed:.0f}", str(mode), *cells)
    Console(highlight=False).print(table)


def _cell(row: Any) -> str:
    if row is None:
        return "–"
    value, error = float(row.value), row.standard_error
    return f"{value:.3f}" if error is None or math.isnan(error) else f"{value:.3f} ± {float(error):.3f}"
