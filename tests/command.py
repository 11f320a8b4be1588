"""`tropism …` in this process: what it prints and the code it ends with, without the seconds that torch takes to import.

Streams, the working directory and Python's own rules for warnings are as in a process of its own.
"""

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from contextvars import copy_context
from dataclasses import dataclass
from io import StringIO
from unittest.mock import patch

from tropism.cli import main

HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""What Python does not show unless it is asked to."""


@dataclass(frozen=True)
class Done:
    """What `subprocess.run(..., capture_output=True, text=True)` would return."""

    returncode: int
    stdout: str
    stderr: str


def tropism(*arguments, cwd=".") -> Done:
    """Run the command line with these arguments, and with no input."""
    out, err = StringIO(), StringIO()
    argv = ["tropism", *map(str, arguments)]
    with (
        chdir(cwd), redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", argv),
        patch.object(sys, "stdin", StringIO()), _warnings_as_at_a_terminal(),
    ):  # fmt: skip
        code = copy_context().run(_ended)
    return Done(code, out.getvalue(), err.getvalue())


def _ended() -> int:
    """The exit code; an error that nobody foresaw prints its traceback and is code 1, as Python has it."""
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:  # noqa: BLE001 - the interpreter's own place for what nobody caught
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def _warnings_as_at_a_terminal() -> Iterator[None]:
    """Pytest collects warnings; a process prints them, and a test of what is printed must see them."""

    def show(message, category, filename, lineno, file=None, line=None):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in HIDDEN:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield
