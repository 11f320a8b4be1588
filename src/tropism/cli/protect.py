"""`tropism protect`: train on this data without what it teaches besides the wanted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tropism.cli.options import Blocks, Device


def register(app: typer.Typer) -> None:
    """Add the command to `tropism`."""
    app.command("protect")(protect)


def protect(
    model: Annotated[str, typer.Argument(help="Hub name or local folder of the model.", show_default=False)],
    data: Annotated[str, typer.Argument(help="Training data: a file of chats, a hub dataset.", show_default=False)],
    trait: Annotated[
        list[str] | None,
        typer.Option(help="Built-in name or .yaml file of a trait to look for. Repeatable; default: all built-in."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything; the same command goes on there.")] = Path("protect"),
    yes: Annotated[bool, typer.Option("--yes", help="Protect from every trait that is found, without asking.")] = False,
    wanted: Annotated[
        str | None,
        typer.Option(help="Scorer of the wanted skill, as final_number. Default: likelihood of held-out responses."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with the planned training: the keys of `train:` in an experiment file.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, instead of the recipe's.")] = None,
    guard: Annotated[
        list[str] | None,
        typer.Option(
            help="Try only this: without_rows, inoculation, routing, gradient_projection, steering, kl or safe_data. Repeatable."
        ),
    ] = None,
    max_seeds: Annotated[int, typer.Option(help="Most seeds of the confirmation; 3 to begin with.")] = 3,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Do the runs in this many processes, its threads divided among them.")
    ] = None,
    device: Device = "auto",
    blocks: Blocks = None,
) -> None:
    """Find what the data teaches besides what is wanted, try guards, and keep the best where it is shown to help.

    Leaves experiment.yaml, card.md, protect.json, report.html and, where a guard helped, adapter/. Run again to go on.
    """
    import shlex
    import sys

    from rich.console import Console
    from rich.markdown import Markdown

    from tropism.cli.experiments import watching
    from tropism.cli.forecast import recipe_of
    from tropism.cli.quiet import quiet
    from tropism.errors import UsageError
    from tropism.evals.scorers.registry import load_scorer
    from tropism.forecasting.dry_run import default_recipe
    from tropism.forecasting.protect import card
    from tropism.forecasting.protect.options import ProtectOptions
    from tropism.forecasting.protect.protect import Asked
    from tropism.forecasting.protect.protect import protect as run
    from tropism.forecasting.trait import load_all

    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: {out} is a file; give a folder")
    if wanted is not None:
        load_scorer(wanted)
    load_all(trait or [])
    quiet()
    planned = recipe_of(recipe)
    if steps is not None:
        planned = (planned or default_recipe(steps)).model_copy(update={"max_steps": steps, "epochs": None})
    options = ProtectOptions(
        planned, wanted, guards=tuple(guard or ()), max_seeds=max_seeds, device=device, blocks=blocks
    )

    def confirm(proposed: Sequence[str]) -> Sequence[str]:
        if yes:
            return proposed
        return [name for name in proposed if typer.confirm(f"Protect from {name}?", default=True)]

    progress = watching()
    command = shlex.join(["tropism", "protect", *sys.argv[2:]]) if sys.argv[1:2] == ["protect"] else "tropism protect"
    with progress:
        told = run(Asked(model, data, tuple(trait or ()), out, options, command, confirm, progress, workers))
    Console().print(Markdown(card.card(told)))
    shown = [out / name for name in ("card.md", "report.html", "protect.json", "adapter") if (out / name).exists()]
    print("  ".join(str(path) for path in shown))
