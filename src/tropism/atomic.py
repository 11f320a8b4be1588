"""Files that are there whole or not at all, also where two processes write the same one."""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
"""How the system says that a disk, or one's share of it, is full."""


def says_disk_is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full; safetensors and torch raise errors of their own, in the system's words.

    >>> says_disk_is_full(OSError(28, "No space left on device")), says_disk_is_full(OSError(2, "no such file"))
    (True, False)
    """
    return getattr(error, "errno", None) in _FULL or "No space left on device" in str(error)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the target's place once it is written.

    The path is beside the target, hidden, and unique to this call: two processes never write into one another's file, and
    whoever finishes last is what remains. After an exception the target is as it was.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "made" / "numbers.csv"
    >>> with replacing(target) as path:
    ...     _ = path.write_text("1,2")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('1,2', 1)
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    try:
        yield partial
        _put_in_place(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a text in UTF-8, its line ends as they are, whole or not at all."""
    with replacing(target) as path:
        path.write_text(text, encoding="utf-8", newline="")


def _put_in_place(partial: Path, target: Path) -> None:
    """Replace the target. Windows refuses while another process has it open, which readers do for moments only."""
    for pause in (0.05, 0.2, 1.0) if os.name == "nt" else ():
        try:
            os.replace(partial, target)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    os.replace(partial, target)
