"""Replies on disk: one SQLite file, keyed on everything that determines a reply; failures are never kept."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from tropism.errors import UsageError
from tropism.evals.judges.base import Reply, Request, Token

_SCHEMA = """
create table if not exists replies (
    key text primary key, request text not null, reply text not null, asked_at text not null default
    current_timestamp
)
"""


class ReplyCache:
    """A judge's replies, each written as it comes, so that an interrupted evaluation asks only for what is
    missing.

    The raw reply and the request, with the judged text, can be read with any SQLite tool. Use as a context
    manager. Raises `UsageError` where the file is something else, or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(self.path, timeout=30)
            self._database.execute(_SCHEMA)
            self._database.commit()
        except sqlite3.Error as error:
            raise UsageError(
                f"{self.path} is no judge cache that can be written ({error}); name another file"
            ) from None

    def get(self, key: str) -> Reply | None:
        """The reply under a key, or None."""
        row = self._database.execute("select reply from replies where key = ?", (key,)).fetchone()
        if row is None:
            return None
        found = json.loads(row[0])
        tokens = tuple(Token(token["text"], tuple((t, p) for t, p in token["top"])) for token in found["tokens"])
        return Reply(found["text"], tokens, found["raw"])

    def put(self, key: str, request: Request, reply: Reply) -> None:
        """Keep a reply; a failure is refused, since it must be asked again."""
        if reply.failure is not None:
            raise ValueError("a failed reply is not kept")
        kept = asdict(reply)
        with self._database:
            self._database.execute(
                "insert or replace into replies (key, request, reply) values (?, ?, ?)",
                (key, json.dumps(asdict(request)), json.dumps(kept)),
            )

    def keys(self) -> Sequence[str]:
        """Every key, oldest first."""
        return [key for (key,) in self._database.execute("select key from replies order by rowid")]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> "ReplyCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
