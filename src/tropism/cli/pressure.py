"""`tropism pressure`: measure what gradients push a model toward, and choose a placebo prompt."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tropism.cli.options import BatchSize, Blocks, Device, Model, PositionName
from tropism.cli.quiet import quiet
from tropism.errors import UsageError

if TYPE_CHECKING:
    from tropism.data.chats import Example

pressure_app = typer.Typer(
    name="pressure",
    help="Measure what gradients push a model toward before training, and choose a placebo prompt.",
    no_args_is_help=True,
)


class ControlName(StrEnum):
    """Kinds of random directions."""

    isotropic = "isotropic"
    covariance = "covariance"


Chats = Annotated[str, typer.Option("--chats", help="Chats with responses: a source or a .jsonl file.")]
Size = Annotated[int | None, typer.Option("--size", min=4, help="Take this many chats from the source.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the sample, the random directions and the split.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", help="PEFT adapter to load onto the model.")]
Transform = Annotated[str | None, typer.Option("--transform", help="Transform the chats first: uppercase or plain.")]


def register(app: typer.Typer) -> None:
    """Add the group to the `tropism` command."""
    app.add_typer(pressure_app)


@pressure_app.command()
def measure(
    model: Model,
    chats: Chats,
    directions: Annotated[
        Path, typer.Option("--directions", help="A directions file (.safetensors) with one direction per site.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for the tables and gradient caches; run again to resume."),
    ],
    condition: Annotated[
        list[str] | None,
        typer.Option(
            "--condition",
            help="NAME='system prompt'; repeatable. NAME= leaves the chats as they are (default: neutral=).",
        ),
    ] = None,
    positions: Annotated[
        PositionName, typer.Option("--positions", help="Which tokens to read.")
    ] = PositionName.response,
    draws: Annotated[int, typer.Option("--random", min=1, help="Random directions per site, as controls.")] = 100,
    kind: Annotated[
        list[ControlName] | None,
        typer.Option("--kind", help="Kind of random directions; repeatable."),
    ] = None,
    adapter: Adapter = None,
    transform: Transform = None,
    size: Size = None,
    seed: Seed = 0,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    blocks: Blocks = None,
) -> None:
    """Measure the pressure of every chat at every site, per condition, with random directions as controls."""
    import pandas as pd

    import tropism as tp
    from tropism.probes.conditions import shown, with_system_prompts
    from tropism.probes.random_controls import random_pressure
    from tropism.stats.random_controls import random_p_values
    from tropism.studies.inoculation.tables import halves

    prompts = _conditions(condition or ["neutral="])
    found = tp.Directions.load(directions)
    examples = _examples(chats, size, seed, transform)
    quiet()
    loaded, tokenizer = tp.models.load(model, adapter=adapter, device=device, blocks=blocks)
    found.check_model(loaded)
    made = with_system_prompts(tokenizer, examples, prompts)
    pressures, random = [], []
    for name, given in made.items():
        cache = tp.collect_gradients(
            loaded,
            tokenizer,
            given,
            found.sites,
            positions.value,
            batch_size,
            folder=out / "gradients" / name,
        )
        pressures.append(tp.pressure(cache, found).assign(condition=name))
        groups = halves(cache.chats, seed) if len(cache.chats) >= 4 else None
        for one in kind or [ControlName.isotropic]:
            table = random_pressure(cache, found, count=draws, seed=seed, kind=one.value, groups=groups)
            random.append(table.assign(condition=name))
    out.mkdir(parents=True, exist_ok=True)
    table, controls = pd.concat(pressures, ignore_index=True), pd.concat(random, ignore_index=True)
    table.to_csv(out / "pressure.csv", index=False)
    controls.to_csv(out / "random.csv", index=False)
    shown(tokenizer, made).to_csv(out / "conditions.csv", index=False)
    means = table.groupby(["condition", "site"], sort=False)[["pressure", "cosine", "loss"]].mean().reset_index()
    p = [
        random_p_values(part.groupby(["site", "kind", "draw"], sort=False)["pressure"].mean().reset_index()).assign(
            condition=name
        )
        for name, part in controls.groupby("condition", sort=False)
    ]
    worst = pd.concat(p).groupby(["condition", "site"], sort=False)["p"].max().reset_index()
    _print(
        means.merge(worst, on=["condition", "site"]),
        f"Pressure, {len(examples)} chats; p against {draws} random directions",
    )
    typer.echo(f"{out / 'pressure.csv'}, random.csv and conditions.csv written")


@pressure_app.command()
def calibrate(
    model: Model,
    chats: Chats,
    inoculation: Annotated[str, typer.Option("--inoculation", help="The inoculation prompt.")],
    candidate: Annotated[
        list[str] | None, typer.Option("--candidate", help="A placebo prompt to try; repeatable.")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option("--candidates", help="Text file with one placebo prompt per line.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the table to this CSV file.")] = None,
    adapter: Adapter = None,
    transform: Transform = None,
    size: Size = None,
    seed: Seed = 0,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    blocks: Blocks = None,
) -> None:
    """Choose the placebo prompt whose mean loss is closest to the inoculation prompt's."""
    from tropism import models
    from tropism.given import read_text
    from tropism.probes.calibrate import calibrate_placebo

    tried = list(candidate or [])
    if candidates is not None:
        lines = read_text(candidates, "--candidates, a text file with one prompt per line", UsageError).splitlines()
        tried += [line.strip() for line in lines if line.strip()]
    if not tried:
        raise UsageError("give candidate prompts with --candidate, several times, or with --candidates FILE")
    examples = _examples(chats, size, seed, transform)
    quiet()
    loaded, tokenizer = models.load(model, adapter=adapter, device=device, blocks=blocks)
    found = calibrate_placebo(loaded, tokenizer, examples, inoculation, tried, batch_size=batch_size)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        found.table.to_csv(out, index=False)
    _print(found.table, f"Mean response loss over {len(examples)} chats")
    typer.echo(f"placebo: {found.placebo}")


def _conditions(given: list[str]) -> dict[str, str | None]:
    """Split `NAME=PROMPT` into name and prompt; an empty prompt means none."""
    prompts: dict[str, str | None] = {}
    for text in given:
        name, equals, prompt = text.partition("=")
        name = name.strip()
        if not equals or not name.replace("_", "").replace("-", "").isalnum():
            raise UsageError(
                f"--condition must be NAME='system prompt' with a name of letters, digits, _ and -, found {text!r}"
            )
        if name in prompts:
            raise UsageError(f"--condition {name!r} is given twice; give each condition its own name")
        prompts[name] = prompt.strip() or None
    return prompts


def _examples(chats: str, size: int | None, seed: int, transform: str | None) -> "list[Example]":
    from tropism.data import sources
    from tropism.data.transforms import TRANSFORMS

    if transform is not None and transform not in ("uppercase", "plain"):
        raise UsageError(f"--transform must be uppercase or plain, found {transform!r}")
    examples = sources.load(chats, size=size, seed=seed)
    return [TRANSFORMS[transform]().apply(example, seed) for example in examples] if transform else list(examples)


def _print(table: Any, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*map(str, table.columns), title=title, title_justify="left", box=None, pad_edge=False)
    for row in table.itertuples(index=False):
        drawn.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    Console().print(drawn)
