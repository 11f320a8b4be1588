"""`tropism show-data`: what is learned of some data, as coloured tokens."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tropism.cli.options import Columns, parse_columns
from tropism.errors import UsageError


class SuperviseName(StrEnum):
    """What of a chat is learned."""

    all_turns = "all_turns"
    last_turn = "last_turn"
    all_tokens = "all_tokens"


def register(app: typer.Typer) -> None:
    """Add the command to the `tropism` command."""
    app.command("show-data")(show_data)


def show_data(
    file: Annotated[Path, typer.Argument(help="An experiment file, or a data file.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Whose tokenizer to use; an experiment names its own.", show_default=False),
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option("--condition", help="Show only this condition (experiment files only).", show_default=False),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many examples to show.")] = 3,
    supervise: Annotated[
        SuperviseName | None,
        typer.Option("--supervise", help="Which parts of each chat to train on (data files only)."),
    ] = None,
    columns: Columns = None,
    chat_template: Annotated[
        str | None, typer.Option("--chat-template", help="Of a data file: a Jinja file, or a name of TRL's.")
    ] = None,
    template_kwargs: Annotated[
        str | None, typer.Option("--template-kwargs", help='Of a data file: JSON, as in {"enable_thinking": false}.')
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page here as well.", show_default=False)] = None,
) -> None:
    """Show which tokens of the training data count toward the loss."""
    from rich.console import Console

    from tropism.experiments import show_data as showing
    from tropism.reports import tokens

    if not file.is_file():
        raise UsageError(f"no such file: {file}")
    of_data = {"supervise": supervise, "columns": columns, "chat-template": chat_template,
               "template-kwargs": template_kwargs}  # fmt: skip
    if _is_experiment(file):
        _refuse(of_data, "a data file, and this is an experiment; say it in the file")
        shown = showing.show_experiment(file, model=model, condition=condition, rows=rows)
    else:
        _refuse({"condition": condition}, "an experiment, and this is a data file")
        if model is None:
            raise UsageError("--model is required with a data file, to choose the tokenizer")
        choice = showing.DataChoice(
            columns=parse_columns(columns), supervise=supervise.value if supervise else "all_turns"
        )
        shown = showing.show_file(
            file, model, choice, chat_template=chat_template, template_kwargs=_variables(template_kwargs), rows=rows
        )
    console = Console(highlight=False)
    console.print(tokens.terminal(shown, colour=console.is_terminal and not console.no_color), soft_wrap=True)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(tokens.html(shown, f"What is learned of {file.name}"), encoding="utf-8")
        print(f"wrote {html}")


def _is_experiment(file: Path) -> bool:
    """Whether a file says what an experiment says; a YAML file of questions does not."""
    from tropism.experiments.file.yaml_file import read
    from tropism.experiments.show_data import EXPERIMENTS

    if file.suffix.lower() not in EXPERIMENTS:
        return False
    import yaml

    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        read(file)  # says what is wrong with it
        return True
    return not isinstance(held, list)


def _refuse(options: dict[str, Any], why: str) -> None:
    for name, value in options.items():
        if value:
            raise UsageError(f"--{name} is for {why}")


def _variables(given: str | None) -> dict[str, Any]:
    if given is None:
        return {}
    try:
        held = json.loads(given)
    except json.JSONDecodeError as error:
        raise UsageError(f"--template-kwargs must be JSON, found {given!r} ({error})") from None
    if not isinstance(held, dict):
        raise UsageError(f"--template-kwargs must be an object, found {given!r}")
    return held
