"""The `tropism` command: its groups, and the one place where an error becomes a sentence and an exit code."""

import importlib.metadata
import os
import sys
import traceback
from typing import Annotated

import typer

from tropism import errors
from tropism.atomic import says_disk_is_full
from tropism.cli import (
    chat,
    evaluate,
    experiments,
    export,
    forecast,
    from_adapter,
    pressure,
    protect,
    push,
    report,
    show_data,
    synthesize,
    verbosity,
)
from tropism.cli.data import data_app
from tropism.cli.directions import directions_app
from tropism.cli.printable import make_printable


def _version(asked: bool) -> None:
    if asked:
        print(f"tropism {importlib.metadata.version('tropism')}")
        raise typer.Exit()


app = typer.Typer(
    name="tropism",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def tropism(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Steer what a language model learns in fine-tuning, and measure what it learned.

    Exit codes: 0 done; 1 unexpected error; 2 a mistake in the command, a file or its data; 3 runs failed or could not be
    scored; 130 interrupted; 141 whoever read the output has left.
    """


experiments.register(app)
report.register(app)
show_data.register(app)
chat.register(app)
push.register(app)
export.register(app)
evaluate.register(app)
pressure.register(app)
forecast.register(app)
protect.register(app)
synthesize.register(app)
from_adapter.register(directions_app)
app.add_typer(directions_app, name="directions")
app.add_typer(data_app, name="data")
verbosity.add_options(app)


READER_LEFT = 128 + 13
"""What a shell says of a command that wrote into a pipe that nobody reads: SIGPIPE, as of any other tool."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 a mistake of the user's, 3 runs failed, 130 interrupted, 141 nobody reads,
    1 the rest.
    """
    make_printable()
    try:
        app()
    except SystemExit as end:
        if _nobody_reads(end):
            raise SystemExit(READER_LEFT) from None
        raise
    except errors.TropismError as error:
        if verbosity.level() == verbosity.VERBOSE:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, errors.UsageError) else 1) from None
    except Exception as error:
        if not says_disk_is_full(error):
            raise
        print(
            "error: the disk is full; free some space and run the same command again: what is finished is kept",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None


def _nobody_reads(end: SystemExit) -> bool:
    """Whether a command ended because its output went into a pipe whose reader has left (`tropism schema | head`).

    Typer and Rich both end with 1 then, while they handle the broken pipe. A command that prints little finds out as its
    last lines are flushed: here, since at the interpreter's own exit nothing could be done about it.
    """
    cause = end.__context__
    while cause is not None and not isinstance(cause, BrokenPipeError):
        cause = cause.__context__
    try:
        sys.stdout.flush()
    except BrokenPipeError as broken:
        cause = broken
    if cause is None:
        return False
    # What is still buffered has nowhere to go; the interpreter would say so as it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True
