"""`tropism forecast`: what a fine-tune on this data would teach, trait by trait, before any training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tropism.cli.options import Blocks, Device

if TYPE_CHECKING:
    from tropism.forecasting.found import Forecast
    from tropism.training.options import TrainOptions

FOUND = 3
"""The exit code of `--fail-on`: a trait has the verdict that was to fail."""


def register(app: typer.Typer) -> None:
    """Add the command to `tropism`."""
    app.command("forecast")(forecast)


def forecast(
    model: Annotated[str, typer.Argument(help="Hub name or local folder of the model.", show_default=False)],
    data: Annotated[
        str, typer.Argument(help="Training data: a file of chats, a hub dataset, a source's name.", show_default=False)
    ],
    trait: Annotated[
        list[str] | None,
        typer.Option(
            help="Built-in name, .yaml file, or a sentence ('always answers in rhyme'). Repeatable; default: all built-in."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for forecast.json, forecast.html and rows.parquet.")] = Path(
        "forecast"
    ),
    tier: Annotated[
        Literal["auto", "projection", "gradient", "dry_run"],
        typer.Option(help="How much to measure; auto adds a dry run where something is found."),
    ] = "auto",
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="YAML with the planned training: the keys of `train:` in an experiment file. Default: 3 passes, 32 steps."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=8, help="Maximum number of rows to measure.")] = 256,
    own: Annotated[int, typer.Option(min=8, help="Prompts that the model answers itself.")] = 48,
    split: Annotated[str, typer.Option(help="Split of the data.")] = "train",
    export: Annotated[
        Path | None, typer.Option(help="Write the data as JSONL, without (or labelling) the rows of --drop.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="'top N % of TRAIT': rows to leave out of --export. Repeatable.")
    ] = None,
    label: Annotated[
        Literal["forget", "retain"] | None,
        typer.Option(help="Label those rows for gradient routing instead of leaving them out."),
    ] = None,
    fail_on: Annotated[
        Literal["expected", "possible"] | None, typer.Option(help="Exit with code 3 at this verdict or a worse one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of samples and nulls.")] = 0,
    device: Device = "auto",
    blocks: Blocks = None,
) -> None:
    """Say what a fine-tune on this data would teach besides what you want, before any training.

    Exit codes: 0, 2 for a mistake in what was asked, 3 where --fail-on applies.
    """
    from rich.console import Console

    from tropism import models
    from tropism.cli.quiet import quiet
    from tropism.data import sources
    from tropism.errors import UsageError
    from tropism.forecasting import outputs, page
    from tropism.forecasting.dry_run import default_recipe
    from tropism.forecasting.forecast import forecast as run
    from tropism.forecasting.found import Options
    from tropism.forecasting.trait import load_all

    if export is not None and not drop:
        raise UsageError("--export needs --drop 'top N % of TRAIT', which says which rows to leave out or label")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: {out} is a file; give a folder")
    quiet()
    traits = load_all(trait or [])
    planned = recipe_of(recipe)
    examples = sources.load(data, split=split)
    console = Console(stderr=True, highlight=False)
    loaded, tokenizer = models.load(model, device=device, blocks=blocks)
    found = run(
        loaded,
        tokenizer,
        examples,
        traits,
        tier=tier,
        recipe=planned or default_recipe(len(examples)),
        fresh_model=lambda: models.load(model, device=device, blocks=blocks)[0],
        options=Options(rows=rows, own=own, seed=seed),
        say=lambda line: console.print(f"[dim]{line}[/dim]", soft_wrap=True, markup=True),
    )
    outputs.write(found, out, data=data)
    page.write(found, examples, out / "forecast.html", data=data)
    _show(found, page.headline(found), out)
    if export is not None:
        named = {line for rule in drop or [] for line in outputs.blamed(found.blame(), rule)}
        count = outputs.export(examples, named, export, label=label)
        done = f"labelled {label}" if label else "left out"
        console.print(f"{export}: {count} of {len(examples)} rows {done}")
    worse = {"expected": ("expected",), "possible": ("expected", "possible")}.get(fail_on or "", ())
    if any(str(one.outcome) in worse for one in found.traits):
        raise typer.Exit(FOUND)


def recipe_of(path: Path | None) -> "TrainOptions | None":
    """The planned training, from a YAML file with the keys of `train:`; raises `UsageError`."""
    if path is None:
        return None
    from pydantic import ValidationError

    from tropism.errors import UsageError
    from tropism.given import read_yaml
    from tropism.training.options import TrainOptions

    held = read_yaml(path, "--recipe", UsageError)
    options = held.get("train", held) if isinstance(held, dict) else held
    try:
        return TrainOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UsageError(f"--recipe: {path}: {key}: {first['msg']}, found {str(first['input'])[:40]!r}") from None


def _show(found: "Forecast", headline: str, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "trait", "verdict", "probability", "dose", "rows with it", "own answers", "gradient", box=None, pad_edge=False
    )
    colour = {"expected": "red", "possible": "yellow", "none": "dim", "cannot": "magenta"}
    for one in sorted(found.traits, key=lambda one: -(one.probability or 0.0)):
        p = one.projected
        table.add_row(
            one.trait.name,
            f"[{colour[str(one.outcome)]}]{one.outcome}[/]",
            "–" if one.probability is None else f"{one.probability:.0%}",
            "–" if p is None else f"{p.dose:+.2f} [{p.dose_low:+.2f}, {p.dose_high:+.2f}]".replace("[", "\\["),
            "–" if one.rated is None else f"{one.rated.rows:.0%}",
            "–" if one.rated is None else f"{one.rated.own:.0%}",
            "–" if one.pulled is None else f"{one.pulled.cosine:+.2f}",
        )
    console = Console()
    console.print(table)
    console.print(headline, soft_wrap=True)
    console.print(
        f"[dim]{out / 'forecast.html'} · {out / 'forecast.json'} · {out / 'rows.parquet'}[/dim]", soft_wrap=True
    )
