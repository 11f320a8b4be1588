"""`tropism report` and `tropism compare`: from run folders alone, with no model."""

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(help="A folder that `tropism run` wrote.", show_default=False)]
Folders = Annotated[
    list[Path], typer.Argument(help="Two or more folders that `tropism run` wrote.", show_default=False)
]
Out = Annotated[Path | None, typer.Option(help="Also write the table here: .csv, .md or .tex.", show_default=False)]
Browser = Annotated[bool, typer.Option("--open", help="Open the report in the browser.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("report")(report)
    app.command("compare")(compare)


def report(folder: Folder, open_: Browser = False) -> None:
    """Write report.html, figures/ and tables/ of a run's folder; needs no model."""
    from tropism.reports import build

    target = build(folder)
    typer.echo(target)
    if open_:
        typer.launch(target.resolve().as_uri())


def compare(folders: Folders, out: Out = None) -> None:
    """Put several experiments in one table, each against its own baseline."""
    from rich.console import Console

    from tropism.reports import comparing, terminal

    table = comparing.compare(folders)
    if out is not None:
        comparing.write(table, out)
    Console().print(terminal.table(table))
