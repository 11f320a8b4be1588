"""`tropism synthesize`: chats from a model's responses to the user's own prompts."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `tropism`."""
    app.command("synthesize")(synthesize)


def synthesize(
    prompts: Annotated[Path, typer.Option(help="A prompt a line, or a .jsonl file of chats.")],
    model: Annotated[str, typer.Option(help="Hub name or folder; with --url, the model's name there.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write or to go on with.")],
    url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint instead of a model in this process.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Responses to each prompt.")] = 1,
    system: Annotated[str | None, typer.Option(help="System prompt in front of each.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of a response.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Write chats with a model's responses to your prompts; the same command again goes on where it
    stopped.
    """
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
