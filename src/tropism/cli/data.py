"""`tropism data`: what an experiment trains on, as files."""

from pathlib import Path
from typing import Annotated

import typer

from tropism.cli.experiments import File, Quick, Set, load_experiment
from tropism.errors import UsageError

data_app = typer.Typer(
    name="data", help="Look at the data of an experiment, and write it to files.", no_args_is_help=True
)


@data_app.command()
def export(
    file: File,
    out: Annotated[Path, typer.Option("--out", help="Write the rows to this .jsonl file.")],
    condition: Annotated[
        str | None, typer.Option("--condition", help="What this condition trains on: messages, labels, ids.")
    ] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="What this prepared adapter trains on.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Export this data set of the experiment file.")] = None,
    directions: Annotated[
        str | None, typer.Option("--directions", help="The contrast of these directions, as pairs.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="With --condition: one of the file's seeds; by default the first.")
    ] = None,
    quick: Quick = False,
    set_: Set = None,
) -> None:
    """Write what a condition trains on as JSONL, which Tropism and other trainers read."""
    from tropism.experiments import export as rows

    given = {"--condition": condition, "--adapter": adapter, "--data": data, "--directions": directions}
    named = [option for option, value in given.items() if value is not None]
    if len(named) != 1:
        raise UsageError(f"give one of {', '.join(given)}; found {' and '.join(named) or 'none of them'}")
    if seed is not None and condition is None:
        raise UsageError(f"--seed goes with --condition, found {named[0]}: its rows are the same for every seed")
    if out.suffix != ".jsonl":
        raise UsageError(f"--out must end in .jsonl, found {out}")
    experiment = load_experiment(file, quick, None, set_)
    if condition is not None:
        found = rows.condition_rows(experiment, condition, seed)
    elif adapter is not None:
        found = rows.adapter_rows(experiment, adapter)
    elif data is not None:
        found = rows.set_rows(experiment, data)
    else:
        found = rows.contrast_rows(experiment, str(directions))
    count = rows.write_rows(found, out)
    print(f"{count} rows written to {out}")
