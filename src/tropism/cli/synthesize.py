"""`tropism synthesize`: make chats from a model's responses to your prompts, or to those of a data source."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tropism.cli.options import Columns, parse_columns

if TYPE_CHECKING:
    from tropism.synthesize import Messages


def register(app: typer.Typer) -> None:
    """Add the command to `tropism`."""
    app.command("synthesize")(synthesize)


def synthesize(
    model: Annotated[
        str, typer.Option(help="Model: a hub name or a local folder; with --url, its name at the endpoint.")
    ],
    out: Annotated[Path, typer.Option(help="JSONL file to write, or to continue.")],
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt per line, or a .jsonl file of chats.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="The prompts of a data source instead: harmful_qa, gsm8k, OWNER/NAME, a file of rows."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With --source: which split, and which rows of it, as in train[:40%].")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="With --source: a part that the source names.")] = None,
    path: Annotated[
        str | None, typer.Option(help="With --source: where the files of a source by name lie; by default on the hub.")
    ] = None,
    columns: Columns = None,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="Answer the first so many different prompts.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask this OpenAI-compatible endpoint instead of loading a model.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Responses per prompt.")] = 1,
    system: Annotated[str | None, typer.Option(help="System prompt for every chat.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per response.")] = 256,
    temperature: Annotated[float, typer.Option(help="Sampling temperature, 0 for greedy.")] = 0.7,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens that together have this probability.")
    ] = 1.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Divide the logits of tokens already said by this; 1 for no penalty.")
    ] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Prompts answered together.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed for sampling.")] = 0,
) -> None:
    """Write chats with a model's responses to your prompts, or a data source's; run it again to continue where it stopped."""
    from pydantic import ValidationError
    from rich.console import Console

    from tropism import synthesize as library
    from tropism.errors import UsageError

    try:
        options = library.SynthesizeOptions(
            samples=samples, system=system, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            repetition_penalty=repetition_penalty, batch_size=batch_size, seed=seed,
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}, found {first['input']!r}"
        ) from None
    asked = _prompts(prompts, source, split, subset, path, columns)
    respond = library.endpoint_model(model, url, options) if url else library.local_model(model, options)
    name = Path(model).name if Path(model).exists() else model  # files hold no path of this machine
    outcome = library.synthesize(asked, out, respond, model=name, options=options, max_prompts=max_prompts)
    Console().print(f"{outcome}; {out}", soft_wrap=True)


def _prompts(
    prompts: Path | None,
    source: str | None,
    split: str | None,
    subset: str | None,
    path: str | None,
    columns: list[str] | None,
) -> "Path | list[Messages]":
    """The file of prompts, or the prompts of the source; raises `UsageError` unless exactly one of them is given."""
    from tropism.errors import UsageError
    from tropism.synthesize import prompts_of

    if source is not None and prompts is None:
        return prompts_of(source, split=split, subset=subset, path=path, columns=parse_columns(columns))
    if prompts is None or source is not None:
        raise UsageError(f"give --prompts FILE or --source SOURCE, found {'both' if source else 'neither'}")
    given = {"--split": split, "--subset": subset, "--path": path, "--columns": columns}
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} goes with --source, found it with --prompts {prompts}")
    return prompts
