"""The `tropism` command: its groups, and the one place where an error becomes a sentence and an exit code."""

import importlib.metadata
import sys
from typing import Annotated

import typer

from tropism import errors
from tropism.cli import (
    chat,
    evaluate,
    experiments,
    forecast,
    from_adapter,
    pressure,
    push,
    report,
    synthesize,
)
from tropism.cli.data import data_app
from tropism.cli.directions import directions_app


def _version(asked: bool) -> None:
    if asked:
        print(f"tropism {importlib.metadata.version('tropism')}")
        raise typer.Exit()


app = typer.Typer(
    name="tropism",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def tropism(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Steer what a language model learns in fine-tuning, and measure what it learned."""


experiments.register(app)
report.register(app)
chat.register(app)
push.register(app)
evaluate.register(app)
pressure.register(app)
forecast.register(app)
synthesize.register(app)
from_adapter.register(directions_app)
app.add_typer(directions_app, name="directions")
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point; a user's mistake ends in one sentence and exit code 2, an interruption in 130."""
    try:
        app()
    except errors.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except errors.TropismError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None
