"""`tropism directions from-adapter`: parameter directions from what adapters, or two models, have learned."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the group `tropism directions`."""
    app.command("from-adapter")(from_adapter)


def from_adapter(
    adapters: Annotated[
        list[str],
        typer.Argument(help="Adapter folders (several make a subspace); with --weights, one model."),
    ],
    out: Annotated[Path, typer.Option(help="File to write (safetensors).")],
    minus: Annotated[str | None, typer.Option(help="Subtract this adapter; with --weights, the base model.")] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="The arguments are whole models: aligned, and --minus base.")
    ] = False,
    rank: Annotated[int, typer.Option(help="With --weights: singular directions kept per weight.")] = 16,
    single: Annotated[
        bool, typer.Option("--single", help="With --weights: one direction, not a subspace of RANK.")
    ] = False,
) -> None:
    """Save the directions in weight space that adapters have learned, for an update constraint."""
    from rich.console import Console

    from tropism import models
    from tropism.directions.parameter import parameter_directions
    from tropism.errors import UsageError

    if not weights:
        u = parameter_directions(adapters, minus=minus)
    elif minus is None or len(adapters) != 1:
        raise UsageError(
            f"--weights takes one aligned model and --minus its base, found {len(adapters)} and --minus {minus}"
        )
    else:
        aligned, _ = models.load(adapters[0], device="cpu", dtype="float32")
        base, _ = models.load(minus, device="cpu", dtype="float32")
        u = parameter_directions(aligned, minus=base, rank=rank, subspace=not single)
    u.save(out)
    norms = ", ".join(f"{norm:.4g}" for norm in u.provenance["norms"])
    untouched = u.provenance["untouched_weights"]
    console = Console()
    console.print(f"{u.k} direction(s) at {len(u.weights)} weights, lengths before normalising {norms}")
    if untouched:
        console.print(f"left out, because the adapter did not change them: {', '.join(untouched)}")
    console.print(f"base model: {u.base_model or 'not known'}; saved to {out}")
