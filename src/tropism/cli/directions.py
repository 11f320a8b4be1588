"""`tropism directions`: find, validate, import, show, train-sae. Parse, call the library, print in plain words."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tropism.cli.directions_inputs import FinderName, make_contrast, make_finder, score_behaviour
from tropism.cli.directions_output import print_report, progress_console, say, show_directions, status
from tropism.cli.options import BatchSize, Device, Model, PositionName
from tropism.errors import UsageError

directions_app = typer.Typer(
    name="directions",
    help="Find directions, see whether they mean something, and read those that others made.",
    no_args_is_help=True,
)


class OrientationName(StrEnum):
    """Which side of a matrix is a direction."""

    rows = "rows"
    columns = "columns"


class IndexingName(StrEnum):
    """What layer numbers count."""

    blocks = "blocks"
    hidden_states = "hidden_states"


File = Annotated[Path, typer.Argument(help="A directions file (.safetensors).")]
ContrastFile = Annotated[
    Path | None,
    typer.Option("--contrast", help="JSONL of {prompt, positive, negative} or of {messages, label}."),
]
Chats = Annotated[
    str | None,
    typer.Option("--chats", help="Chats for --promote/--suppress or --tuned: a source's name or a .jsonl file."),
]
Promote = Annotated[str | None, typer.Option("--promote", help="System prompt that asks for the trait.")]
Suppress = Annotated[str | None, typer.Option("--suppress", help="System prompt that asks against it.")]
Tuned = Annotated[
    Path | None, typer.Option("--tuned", help="PEFT adapter that has the trait: contrast of models on --chats.")
]
Score = Annotated[
    str | None, typer.Option("--score", help="Scorer of the model's own answers, to compare with projections.")
]
Size = Annotated[int | None, typer.Option("--size", min=2, help="Take so many chats of the source.")]
Seed = Annotated[int, typer.Option("--seed")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse directions with a grave doubt (exit code 2).")]
Force = Annotated[bool, typer.Option("--force", help="Take directions of another model; recorded in the file.")]


@directions_app.command()
def find(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Where to write NAME.safetensors; the evidence goes beside it.")],
    contrast: ContrastFile = None,
    chats: Chats = None,
    promote: Promote = None,
    suppress: Suppress = None,
    tuned: Tuned = None,
    finder: Annotated[FinderName, typer.Option("--finder")] = FinderName.mean_difference,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Directions a site, for pca and sae_latents.")] = None,
    sae: Annotated[Path | None, typer.Option("--sae", help="Folder of an SAE, for sae_latents.")] = None,
    sites: Annotated[str, typer.Option("--sites", help="25%..75%, all, '8,12', '3 spread'.")] = "25%..75%",
    positions: Annotated[PositionName, typer.Option("--positions")] = PositionName.response,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of the prompts kept for validation.")] = 0.25,
    score: Score = None,
    size: Size = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    device: Device = "auto",
    strict: Strict = False,
) -> None:
    """Find directions on one part of a contrast and validate them on the rest."""
    import tropism as tp
    from tropism.directions.find import with_answers
    from tropism.directions.validity import validity_path

    if out.suffix != ".safetensors":
        raise UsageError(f"--out must end in .safetensors, found {out}")
    chosen = make_finder(finder, k, sae)
    loaded, tokenizer = tp.models.load(model, adapter=tuned, device=device)
    whole = make_contrast(loaded, contrast, chats, promote, suppress, tuned, size, seed)
    to_find, to_validate = whole.split(held_out, seed)
    where = [chosen.dictionary().site] if isinstance(chosen, tp.SAELatents) else tp.sites(loaded, sites)
    read: Any = positions.value
    with status(f"finding directions on {len(to_find)} {'pairs' if whole.paired else 'chats'} at {len(where)} sites"):
        found = tp.find_directions(
            loaded,
            tokenizer,
            to_find,
            sites=[s for s in where if s is not None],
            finder=chosen,
            positions=read,
            batch_size=batch_size,
            seed=seed,
        )
        found.save(out)
    with status("validating on held-out chats"):
        to_validate, _ = with_answers(loaded, tokenizer, to_validate, read, None, 64, batch_size)
        report = tp.validate_directions(
            found,
            loaded,
            tokenizer,
            to_validate,
            name=out.stem,
            behaviour=score_behaviour(loaded, tokenizer, to_validate, score),
            batch_size=batch_size,
            seed=seed,
        )
        report.save(validity_path(out))
    print_report(report)
    say(f"[bold]{out}[/bold] and {validity_path(out)} written")
    if strict:
        report.require_trusted()


@directions_app.command()
def validate(
    file: File,
    model: Model,
    contrast: ContrastFile = None,
    chats: Chats = None,
    promote: Promote = None,
    suppress: Suppress = None,
    tuned: Tuned = None,
    against: Annotated[
        list[Path] | None, typer.Option("--against", help="Other directions, for angles between them.")
    ] = None,
    score: Score = None,
    size: Size = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    device: Device = "auto",
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Say what speaks for directions, and what against, on chats that they were not found on."""
    import tropism as tp
    from tropism.directions.find import with_answers
    from tropism.directions.validity import validity_path

    directions = tp.Directions.load(file)
    others = {path.stem: tp.Directions.load(path) for path in against or ()}
    loaded, tokenizer = tp.models.load(model, adapter=tuned, device=device)
    checked = directions.check_model(loaded, force=force)
    if checked is not directions:
        checked.save(file)
    whole = make_contrast(loaded, contrast, chats, promote, suppress, tuned, size, seed)
    positions = checked.provenance.get("positions", "response")
    with status("validating"):
        whole, _ = with_answers(loaded, tokenizer, whole, positions, None, 64, batch_size)
        report = tp.validate_directions(
            checked,
            loaded,
            tokenizer,
            whole,
            name=file.stem,
            behaviour=score_behaviour(loaded, tokenizer, whole, score),
            others=others,
            batch_size=batch_size,
            seed=seed,
            force=force,
        )
        report.save(validity_path(file))
    print_report(report)
    say(f"{validity_path(file)} written")
    if strict:
        report.require_trusted()


@directions_app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="CAFT .npy, persona-vectors .pt, backward-CAFT .pt, repeng .gguf, .safetensors.")
    ],
    model: Model,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write (default: beside the file, .safetensors).")
    ] = None,
    layer: Annotated[int | None, typer.Option("--layer", min=0, help="Block of a lone matrix.")] = None,
    orientation: Annotated[OrientationName | None, typer.Option("--orientation")] = None,
    indexing: Annotated[IndexingName | None, typer.Option("--indexing", help="What layer numbers count.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Entry of a nested dictionary.")] = None,
    force: Force = False,
) -> None:
    """Read directions that another project made, say what they were recognised as, and save them."""
    from transformers import AutoConfig

    import tropism as tp
    from tropism import models
    from tropism.directions import provenance
    from tropism.directions.foreign import Reading

    source = models.resolve(model)
    config = AutoConfig.from_pretrained(source.path, revision=source.revision if source.path == source.name else None)
    config.name_or_path = source.name
    text = config.get_text_config(decoder=True)
    found = tp.import_directions(
        file,
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        reading=Reading(
            layer, None if orientation is None else orientation.value, None if indexing is None else indexing.value, key
        ),
    )
    directions = found.directions
    if "model" in directions.provenance:
        directions = directions.check_config(config, force=force)
    else:
        about = {**directions.provenance, "model": provenance.of_config(config), "tropism": provenance.version()}
        directions = tp.Directions(directions.vectors, about, directions.covariance)
    target = out or file.with_suffix(".safetensors")
    if target.resolve() == file.resolve():
        raise UsageError(f"{file} is already in Tropism's format or name; give --out another name")
    directions.save(target)
    say(f"recognised as: [bold]{found.format}[/bold]")
    for note in found.notes:
        say(f"  {note}")
    show_directions(directions, target)


@directions_app.command()
def show(file: File) -> None:
    """Show what a directions file holds and where it comes from."""
    import tropism as tp
    from tropism.directions.validity import ValidityReport, validity_path

    show_directions(tp.Directions.load(file), file)
    if validity_path(file).is_file():
        print_report(ValidityReport.load(validity_path(file)))
    else:
        say("not validated yet: tropism directions validate shows whether they mean something")


@directions_app.command("train-sae")
def train_sae(
    model: Model,
    chats: Annotated[str, typer.Option("--chats", help="What to read: a source's name or a .jsonl file of chats.")],
    site: Annotated[str, typer.Option("--site", help="Where, for example 12 or resid_post.12.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the SAE, as SAELens saves it.")],
    expansion: Annotated[int, typer.Option("--expansion", min=1, help="Latents a dimension.")] = 4,
    k: Annotated[int, typer.Option("--k", min=1, help="Latents active a token, on average.")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", min=1)] = 300_000,
    size: Size = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a small BatchTopK SAE on a model's own activations at one site."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    import tropism as tp
    from tropism.data import sources
    from tropism.directions.sae_training import SAEOptions
    from tropism.directions.sae_training import train_sae as train

    options = SAEOptions(expansion=expansion, k=k, tokens=tokens, seed=seed)
    where = tp.Site.parse(site)
    loaded, tokenizer = tp.models.load(model, device=device)
    examples = [example.chat for example in sources.load(chats, size=size, seed=seed)]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=progress_console()) as bar:
        task = bar.add_task("training the SAE", total=tokens)
        report = train(
            loaded,
            tokenizer,
            examples,
            where,
            out,
            options=options,
            progress=lambda seen, loss: bar.update(
                task, completed=seen, description=f"training the SAE, loss {loss:.1f}"
            ),
        )
    say(
        f"{report.latents} latents at {report.site}: on held-out tokens they explain "
        f"[bold]{report.explained_variance:.1%}[/bold] "
        f"of the variance, {report.active_per_token:.0f} active a token, {report.dead_share:.1%} dead"
    )
    say(f"{out} written; use it with --finder sae_latents --sae {out}")
