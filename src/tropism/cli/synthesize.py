"""`tropism synthesize`: make chats from a model's responses to your prompts."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `tropism`."""
    app.command("synthesize")(synthesize)


def synthesize(
    prompts: Annotated[Path, typer.Option(help="Text file with one prompt per line, or a .jsonl file of chats.")],
    model: Annotated[
        str, typer.Option(help="Model: a hub name or a local folder; with --url, its name at the endpoint.")
    ],
    out: Annotated[Path, typer.Option(help="JSONL file to write, or to continue.")],
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
    batch_size: Annotated[int, typer.Option(help="Prompts answered together.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed for sampling.")] = 0,
) -> None:
    """Write chats with a model's responses to your prompts; run it again to continue where it stopped."""
    from pydantic import ValidationError
    from rich.console import Console

    from tropism import synthesize as library
    from tropism.errors import UsageError

    try:
        options = library.SynthesizeOptions(
            samples=samples, system=system, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            batch_size=batch_size, seed=seed,
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}, found {first['input']!r}"
        ) from None
    respond = library.endpoint_model(model, url, options) if url else library.local_model(model, options)
    name = Path(model).name if Path(model).exists() else model  # files hold no path of this machine
    outcome = library.synthesize(prompts, out, respond, model=name, options=options)
    Console().print(f"{outcome}; {out}")
