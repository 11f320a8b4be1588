"""`tropism directions import`: directions that another project saved, as a file of ours."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tropism.cli.directions_output import say, show_directions
from tropism.cli.options import ComponentChoice, Model, parse_components
from tropism.errors import UsageError

if TYPE_CHECKING:
    from tropism.directions.foreign import Reading


class OrientationName(StrEnum):
    """Which side of a matrix is a direction."""

    rows = "rows"
    columns = "columns"


class IndexingName(StrEnum):
    """What layer numbers count."""

    blocks = "blocks"
    hidden_states = "hidden_states"


def register(app: typer.Typer) -> None:
    """Add the command to the group `tropism directions`."""
    app.command("import")(import_)


def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="CAFT .npy or .pt, backward-CAFT .pt, persona-vectors .pt, dictionary_learning ae.pt, repeng .gguf, "
            "LoRA factors .pt, .safetensors; several where each holds one layer."
        ),
    ],
    model: Model,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write to this file; by default beside FILE, as .safetensors.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", min=0, help="Which block a file with a single matrix belongs to.")
    ] = None,
    orientation: Annotated[
        OrientationName | None,
        typer.Option("--orientation", help="Whether directions are the rows or the columns of a square matrix."),
    ] = None,
    indexing: Annotated[
        IndexingName | None,
        typer.Option("--indexing", help="Whether layer numbers count blocks or index hidden_states."),
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Which entry of a nested dictionary to read.")] = None,
    components: ComponentChoice = None,
    force: Annotated[
        bool, typer.Option("--force", help="Accept directions of another model; the file records it.")
    ] = False,
) -> None:
    """Import directions from another project's file."""
    from tropism.directions.foreign import Reading
    from tropism.directions.foreign_files import read_pt
    from tropism.directions.foreign_parameters import is_parameters

    reading = Reading(
        layer,
        None if orientation is None else orientation.value,
        None if indexing is None else indexing.value,
        key,
        parse_components(components),
    )
    target = out or files[0].with_suffix(".safetensors")
    if target.resolve() in [file.resolve() for file in files]:
        raise UsageError(f"{target} would be overwritten; give another name with --out")
    if len(files) == 1 and files[0].suffix.lower() in (".pt", ".pth", ".bin") and files[0].is_file():
        value = read_pt(files[0])
        if is_parameters(value):
            _import_parameters(value, files[0], target, reading)
            return
    _import_activations(files, model, target, reading, force)


def _import_activations(files: list[Path], model: str, target: Path, reading: "Reading", force: bool) -> None:
    from transformers import AutoConfig

    import tropism as tp
    from tropism import models
    from tropism.directions import provenance

    source = models.resolve(model)
    config = AutoConfig.from_pretrained(source.path, revision=source.revision if source.path == source.name else None)
    config.name_or_path = source.name
    text = config.get_text_config(decoder=True)
    found = tp.import_directions(
        files, width=text.hidden_size, layers=text.num_hidden_layers, reading=reading, config=config
    )
    directions = found.directions
    if "model" in directions.provenance:
        directions = directions.check_config(config, force=force)
    else:
        directions = directions.with_provenance(model=provenance.of_config(config), tropism=provenance.version())
    directions.save(target)
    say(f"recognised as: [bold]{found.format}[/bold]")
    for note in found.notes:
        say(f"  {note}")
    show_directions(directions, target)


def _import_parameters(value: Any, file: Path, target: Path, reading: "Reading") -> None:
    from tropism.directions.foreign_parameters import of_named_factors

    for name, given in reading.given().items():
        raise UsageError(f"--{name} does nothing for LoRA factors by name, found {given!r}; leave it out")
    directions = of_named_factors(value, file.name)
    directions.save(target)
    say("recognised as: [bold]LoRA factors by name (.pt), as the refusal study writes them[/bold]")
    say(
        f"{directions.k} direction in weight space at {len(directions.weights)} weights; each factor has length 1, so use"
    )
    say(f"it with update_constraint: {{space: parameter}}; saved to {target}")
