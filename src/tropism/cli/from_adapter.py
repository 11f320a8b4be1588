"""`tropism directions from-adapter`: parameter directions from adapters, or from the difference of two models."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the group `tropism directions`."""
    app.command("from-adapter")(from_adapter)


def from_adapter(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="Adapters, folders or OWNER/NAME on the hub (several make a subspace); with --weights, one model."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Write the directions to this .safetensors file.")],
    minus: Annotated[str | None, typer.Option(help="Subtract this adapter; with --weights, this base model.")] = None,
    start: Annotated[
        str | None,
        typer.Option(help="The adapter as saved before training; required for PiSSA, OLoRA and similar."),
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Take the difference of two whole models: the argument and --minus.")
    ] = False,
    rank: Annotated[int, typer.Option(help="With --weights: singular directions to keep per weight.")] = 16,
    single: Annotated[
        bool, typer.Option("--single", help="With --weights: save one direction instead of a subspace.")
    ] = False,
) -> None:
    """Save the directions in weight space that adapters learned, for an update constraint."""
    from rich.console import Console

    from tropism import models
    from tropism.directions.parameter import parameter_directions
    from tropism.errors import UsageError

    if weights and start is not None:
        raise UsageError("--start belongs to adapters; with --weights, --minus is the model before training")
    if not weights:
        found = [models.resolve_adapter(adapter).path for adapter in adapters]
        less, before = (None if one is None else models.resolve_adapter(one).path for one in (minus, start))
        u = parameter_directions(found, minus=less, start=before)
    elif minus is None or len(adapters) != 1:
        raise UsageError(
            f"--weights takes one model and its base as --minus, found {len(adapters)} models and --minus {minus}"
        )
    else:
        aligned, _ = models.load(adapters[0], device="cpu", dtype="float32")
        base, _ = models.load(minus, device="cpu", dtype="float32")
        u = parameter_directions(aligned, minus=base, rank=rank, subspace=not single)
    u.save(out)
    norms = ", ".join(f"{norm:.4g}" for norm in u.provenance["norms"])
    untouched = u.provenance["untouched_weights"]
    console = Console()
    console.print(f"{u.k} direction(s) at {len(u.weights)} weights; norms before normalising: {norms}")
    if untouched:
        console.print(f"skipped because the adapter did not change them: {', '.join(untouched)}")
    console.print(f"base model: {u.base_model or 'unknown'}; saved to {out}")
