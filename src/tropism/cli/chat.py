"""`tropism chat`: talk to conditions of a finished experiment side by side."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("chat")(chat)


def chat(
    folder: Annotated[
        Path, typer.Argument(help="A folder that `tropism run` wrote, or one run in it.", show_default=False)
    ],
    conditions: Annotated[
        str | None,
        typer.Option(
            help="A column each: 'baseline,caft'; base is the untrained model, NAME:forget_ablated a run without its "
            "forget adapter. By default the baseline and the next.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The runs' seed; the first by default.", show_default=False)] = None,
    modes: Annotated[
        bool, typer.Option("--modes", help="A column for each ablation mode of a run with two adapters.")
    ] = False,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Ask this and leave; repeatable, as turns of one conversation.", show_default=False),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin a new conversation at every prompt.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Length limit of an answer; the experiment's by default.", show_default=False)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy; the experiment's by default.", show_default=False)
    ] = None,
) -> None:
    """Talk to two conditions, or more, side by side; guards are off, as at evaluation.

    Without --prompt it reads from the terminal, or a prompt a line from a pipe. /system TEXT sets a system prompt,
    /reset begins anew, /quit or Ctrl-D ends.
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
