"""`tropism chat`: chat with several conditions of a finished experiment side by side."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("chat")(chat)


def chat(
    folder: Annotated[Path, typer.Argument(help="A results folder, or one run in it.", show_default=False)],
    conditions: Annotated[
        str | None,
        typer.Option(
            help="Conditions to show, a column each: 'baseline,caft'. 'base' is the untrained model, 'NAME:forget_ablated' "
            "a run without its forget adapter. By default the baseline and the first other condition.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the runs; the experiment's first by default.", show_default=False)
    ] = None,
    modes: Annotated[
        bool, typer.Option("--modes", help="Show a column for each ablation mode of a run with two adapters.")
    ] = False,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Ask this and exit; repeatable, as turns of one conversation.", show_default=False),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start a new conversation at every prompt.")] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Maximum tokens per response; the experiment's setting by default.", show_default=False),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Sampling temperature, 0 for greedy; the experiment's setting by default.", show_default=False
        ),
    ] = None,
) -> None:
    """Chat with several conditions side by side; guards are off, as at evaluation.

    Without --prompt, prompts are read from the terminal, or one per line from a pipe. /system TEXT sets a system
    prompt, /reset starts over, /quit or Ctrl-D exits.
    """
    from tropism.cli.quiet import quiet
    from tropism.cli.talking import Talking

    quiet()
    talking = Talking(fresh)
    with talking.waiting("loading"):
        from tropism.experiments.after.chat import open_chat

        opened = open_chat(
            folder,
            conditions=[name.strip() for name in conditions.split(",")] if conditions is not None else (),
            seed=seed,
            modes=modes,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
    talking.talk(opened, prompt)
