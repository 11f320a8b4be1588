"""The `tropism` command: its groups, and the one place where an error becomes a sentence and an exit code."""

import errno
import importlib.metadata
import sys
import traceback
from typing import Annotated

import typer

from tropism import errors
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
FULL = (errno.ENOSPC, errno.EDQUOT)
"""How the system says that a disk, or one's share of it, is full."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 a mistake of the user's, 3 runs failed, 130 interrupted, 141 nobody reads,
    1 the rest.
    """
    make_printable()
    try:
        app()
    except SystemExit:
        # Typer says 1 of a pipe whose reader has left (`tropism schema | head`), and leaves this behind on the way.
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            raise SystemExit(READER_LEFT) from None
        raise
    except errors.TropismError as error:
        if verbosity.level() == verbosity.VERBOSE:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, errors.UsageError) else 1) from None
    except Exception as error:
        # safetensors and torch raise errors of their own, in the system's words.
        if getattr(error, "errno", None) not in FULL and "No space left on device" not in str(error):
            raise
        print(
            "error: the disk is full; free some space and run the same command again: what is finished is kept",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
