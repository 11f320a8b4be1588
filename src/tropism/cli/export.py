"""`tropism export`: a finished run as a folder that loads anywhere."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("export")(export)


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, such as runs/caps/caft/seed-0.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; by default exported/CONDITION-seed-N.", show_default=False)
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge the adapter into the weights: a model that needs no PEFT.")
    ] = False,
    mode: Annotated[
        str | None,
        typer.Option(
            help="Of a run with two adapters: full (with --merged), forget_ablated or retain_ablated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a run's adapter, or its merged model, with the tokenizer and its chat template.

    The base model is written too where others do not have it (the embedded SmolLM2, a local folder, a base with an adapter
    merged in).
    """
    from tropism.cli.quiet import quiet

    quiet()
    from tropism.experiments.after.export import export as write

    written = write(run, out or _default(run, mode), merged=merged, mode=mode)
    print(f"wrote {written.folder}: {', '.join(written.files)}\nload it with {written.how}")


def _default(run: Path, mode: str | None) -> Path:
    parts = [part for part in (run.parent.name, run.name, mode) if part]
    return Path("exported") / "-".join(parts)
