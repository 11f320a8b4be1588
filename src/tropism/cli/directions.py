"""`tropism directions`: find, validate, show, train-sae."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tropism.cli import import_directions
from tropism.cli.directions_inputs import ContrastOptions, FinderName, make_contrast, make_finder, score_behaviour
from tropism.cli.directions_output import print_report, progress_console, say, show_directions, status
from tropism.cli.options import (
    BatchSize,
    Blocks,
    Columns,
    ComponentChoice,
    Device,
    Model,
    PositionName,
    parse_columns,
    parse_components,
)
from tropism.cli.quiet import quiet
from tropism.errors import UsageError

directions_app = typer.Typer(
    name="directions",
    help="Find directions, validate them, and import those of other projects.",
    no_args_is_help=True,
)


import_directions.register(directions_app)

File = Annotated[Path, typer.Argument(help="A directions file (.safetensors).")]
ContrastFile = Annotated[
    Path | None,
    typer.Option("--contrast", help="File with rows {prompt, positive, negative} or {messages, label}."),
]
Chats = Annotated[
    str | None,
    typer.Option("--chats", help="Chats for --promote and --suppress, or for --tuned: a source, a file or a folder."),
]
Promote = Annotated[str | None, typer.Option("--promote", help="System prompt that asks for the trait.")]
Suppress = Annotated[str | None, typer.Option("--suppress", help="System prompt that asks for the opposite.")]
Tuned = Annotated[
    str | None,
    typer.Option(
        "--tuned",
        help="PEFT adapter with the trait, a folder or OWNER/NAME on the hub: contrast it with its base model on --chats.",
    ),
]
Score = Annotated[
    str | None,
    typer.Option("--score", help="Score the model's own answers with this scorer, and correlate with projections."),
]
Split = Annotated[
    str, typer.Option("--split", help="Which split of --chats to read, and which rows of it: test, train[:70%].")
]
Size = Annotated[int | None, typer.Option("--size", min=2, help="Take this many chats from the source.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the sample, the split and the finder.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with code 2 if the evidence for the directions is too weak.")
]
Force = Annotated[bool, typer.Option("--force", help="Accept directions of another model; the file records it.")]


@directions_app.command()
def find(
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Write the directions to this .safetensors file, and the validity report beside it."
        ),
    ],
    contrast: ContrastFile = None,
    chats: Chats = None,
    promote: Promote = None,
    suppress: Suppress = None,
    tuned: Tuned = None,
    columns: Columns = None,
    split: Split = "train",
    finder: Annotated[FinderName, typer.Option("--finder", help="How to find them.")] = FinderName.mean_difference,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Directions per site, for pca and sae_latents.")] = None,
    sae: Annotated[Path | None, typer.Option("--sae", help="Folder of the SAE, for sae_latents.")] = None,
    sites: Annotated[
        str, typer.Option("--sites", help="Which layers: 25%..75%, all, '8,12' or '3 spread'.")
    ] = "25%..75%",
    positions: Annotated[
        PositionName, typer.Option("--positions", help="Which tokens to read.")
    ] = PositionName.response,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of the prompts held out for validation.")] = 0.25,
    components: ComponentChoice = None,
    score: Score = None,
    size: Size = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    device: Device = "auto",
    blocks: Blocks = None,
    strict: Strict = False,
) -> None:
    """Find directions on one part of a contrast and validate them on the rest."""
    import tropism as tp
    from tropism.directions.pipeline import Evidence, find_and_validate
    from tropism.directions.validity import validity_path

    if out.suffix != ".safetensors":
        raise UsageError(f"--out must end in .safetensors, found {out}")
    chosen = make_finder(finder, k, sae)
    options = ContrastOptions(contrast, chats, promote, suppress, tuned, parse_columns(columns), split, size, seed)
    options.check()
    taken = parse_components(components)
    quiet()
    loaded, tokenizer = tp.models.load(model, adapter=tuned, device=device, blocks=blocks)
    contrasted = make_contrast(loaded, options)
    where = [chosen.dictionary().site] if isinstance(chosen, tp.SAELatents) else tp.sites(loaded, sites)
    with status("finding directions") as shown:
        validated = find_and_validate(
            loaded,
            tokenizer,
            contrasted,
            name=out.stem,
            sites=[site for site in where if site is not None],
            finder=chosen,
            positions=positions.value,
            held_out=held_out,
            components=taken,
            evidence=Evidence(partial(score_behaviour, loaded, tokenizer, score), batch_size=batch_size, seed=seed),
            phase=shown.update,
        )
        validated.save(out)
    print_report(validated.report)
    say(f"[bold]{out}[/bold] and {validity_path(out)} written")
    if strict:
        validated.report.require_trusted()


@directions_app.command()
def validate(
    file: File,
    model: Model,
    contrast: ContrastFile = None,
    chats: Chats = None,
    promote: Promote = None,
    suppress: Suppress = None,
    tuned: Tuned = None,
    columns: Columns = None,
    split: Split = "train",
    against: Annotated[
        list[Path] | None, typer.Option("--against", help="Other directions, to report the angles between them.")
    ] = None,
    score: Score = None,
    size: Size = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    device: Device = "auto",
    blocks: Blocks = None,
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Validate directions on held-out chats."""
    import tropism as tp
    from tropism.directions.pipeline import Evidence
    from tropism.directions.validity import validity_path

    options = ContrastOptions(contrast, chats, promote, suppress, tuned, parse_columns(columns), split, size, seed)
    options.check()
    directions = tp.Directions.load(file)
    others = {path.stem: tp.Directions.load(path) for path in against or ()}
    quiet()
    loaded, tokenizer = tp.models.load(model, adapter=tuned, device=device, blocks=blocks)
    checked = directions.check_model(loaded, force=force)
    if checked is not directions:
        checked.save(file)
    contrasted = make_contrast(loaded, options)
    evidence = Evidence(
        partial(score_behaviour, loaded, tokenizer, score), others, batch_size=batch_size, seed=seed, force=force
    )
    with status("validating"):
        report = evidence.report(
            checked,
            loaded,
            tokenizer,
            contrasted,
            name=file.stem,
            positions=checked.provenance.get("positions", "response"),
        )
        report.save(validity_path(file))
    print_report(report)
    say(f"{validity_path(file)} written")
    if strict:
        report.require_trusted()


@directions_app.command()
def show(file: File) -> None:
    """Show what a directions file contains and where it came from."""
    import tropism as tp
    from tropism.directions.validity import ValidityReport, validity_path

    show_directions(tp.Directions.load(file), file)
    if validity_path(file).is_file():
        print_report(ValidityReport.load(validity_path(file)))
    else:
        say("not validated yet: run tropism directions validate")


@directions_app.command("train-sae")
def train_sae(
    model: Model,
    chats: Annotated[str, typer.Option("--chats", help="Chats to train on: a source, a file or a folder.")],
    site: Annotated[str, typer.Option("--site", help="The site, such as 12 or resid_post.12.")],
    out: Annotated[Path, typer.Option("--out", help="Write the SAE to this folder, in SAELens format.")],
    expansion: Annotated[int, typer.Option("--expansion", min=1, help="Latents per dimension of the model.")] = 4,
    k: Annotated[int, typer.Option("--k", min=1, help="Latents active per token, on average.")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Train on this many tokens.")] = 300_000,
    size: Size = None,
    seed: Seed = 0,
    device: Device = "auto",
    blocks: Blocks = None,
) -> None:
    """Train a small BatchTopK SAE on a model's activations at one site."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    import tropism as tp
    from tropism.data import sources
    from tropism.directions.sae_training import SAEOptions
    from tropism.directions.sae_training import train_sae as train

    options = SAEOptions(expansion=expansion, k=k, tokens=tokens, seed=seed)
    where = tp.Site.parse(site)
    quiet()
    loaded, tokenizer = tp.models.load(model, device=device, blocks=blocks)
    examples = [example.content for example in sources.load(chats, size=size, seed=seed)]
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
        f"of the variance, {report.active_per_token:.0f} active per token, {report.dead_share:.1%} dead"
    )
    say(f"{out} written; use it with --finder sae_latents --sae {out}")
