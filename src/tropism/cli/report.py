"""`tropism report` and `tropism compare`: from results folders alone, without a model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tropism.cli.options import AsJson

Folder = Annotated[
    str, typer.Argument(help="A results folder, as `tropism run` writes it, or its URL.", show_default=False)
]
Folders = Annotated[list[Path], typer.Argument(help="Two or more results folders.", show_default=False)]
Out = Annotated[
    Path | None, typer.Option(help="Also write the table to this .csv, .md or .tex file.", show_default=False)
]
Browser = Annotated[bool, typer.Option("--open", help="Open the report in a browser.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("report")(report)
    app.command("compare")(compare)


def report(folder: Folder, open_: Browser = False) -> None:
    """Write the report of a results folder: report.html, figures/ and tables/."""
    from tropism.experiments.mirror import local_of, store_of
    from tropism.reports import build

    here = local_of(folder, reading=True)
    target = build(here)
    if (store := store_of(here)) is not None:
        store.push_rest()
    typer.echo(target)
    if open_:
        typer.launch(target.resolve().as_uri())


def compare(folders: Folders, out: Out = None, as_json: AsJson = False) -> None:
    """Compare several experiments in one table, each with its own baseline."""
    from rich.console import Console

    from tropism.reports import comparing, terminal

    table = comparing.compare(folders)
    if out is not None:
        comparing.write(table, out)
    if as_json:
        rows = json.loads(table.to_json(orient="records"))
        print(json.dumps({"rows": rows}))
        return
    console = Console()
    console.print(*terminal.tables(table, console.width))
