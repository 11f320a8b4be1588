"""`-v` and `-q`, which every command takes: what is printed besides the result."""

import inspect
import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Annotated, Any

import typer

QUIET, NORMAL, VERBOSE = -1, 0, 1

_level: ContextVar[int] = ContextVar("verbosity", default=NORMAL)


def level() -> int:
    """Return `QUIET`, `NORMAL` or `VERBOSE`, as the command line asked for."""
    return _level.get()


def add_options(app: typer.Typer) -> None:
    """Give every command of an app, and the app itself, `-v` and `-q`."""
    commands: list[Any] = [*app.registered_commands]
    if app.registered_callback is not None:
        commands.append(app.registered_callback)
    for command in commands:
        command.callback = _with_options(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_options(group.typer_instance)


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with the two options added to its signature, from which typer makes its options."""

    @wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        _set(kwargs.pop("verbose"), kwargs.pop("quiet"))
        return function(*args, **kwargs)

    flags = {
        "verbose": Annotated[
            bool, typer.Option("--verbose", "-v", help="Print the log too, and tracebacks of errors.")
        ],
        "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only, no progress.")],
    }
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in flags.items()
    ]
    signature = inspect.signature(function)
    command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    command.__annotations__ = {**function.__annotations__, **flags}
    return command


def _set(verbose: bool, quiet: bool) -> None:
    if not (verbose or quiet):
        return  # a command's own flags come after the app's, and not giving one changes nothing
    _level.set(VERBOSE if verbose else QUIET)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("tropism").setLevel(logging.INFO if verbose else logging.ERROR)
