"""The rows of a JSON file, one at a time: a list of a million objects is never in memory as a whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tropism.errors import DataError
from tropism.unique_keys import KeyTwice, once

CHUNK = 1 << 16
SPACE = " \t\r\n"


class JsonStream:
    """Reads JSON values from a text file through a buffer.

    Args:
        path: what an error calls the file.
        file: the opened text.
        most: characters that a single value may have.
    """

    def __init__(self, path: Path, file: IO[str], most: int) -> None:
        self._path, self._file, self._most = path, file, most
        self._buffer, self._at, self._line, self._ended = "", 0, 1, False
        self._decoder = json.JSONDecoder(object_pairs_hook=once)

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Yield `("FILE line N", value)` for each element of the list, for each element of the list under the key
        `data`, or for each of several values that follow one another (JSON lines).

        Raises `DataError` where the text is not JSON, with the line.
        """
        if self._peek() == "[":
            yield from self._elements()
        elif self._peek() == "{":
            # The first object is read key by key, since the whole file may lie under its key `data`.
            where = self._where()
            first: dict[str, Any] | None = {}
            for key in self._keys():
                if key == "data" and self._peek() == "[" and self._holds_objects():
                    yield from self._elements()
                    first = None
                elif first is None:
                    self._value()
                elif key in first:
                    raise self._broken(str(KeyTwice(key)))
                else:
                    first[key] = self._value()
            if first is not None:
                yield where, first
                while self._peek():
                    yield self._where(), self._value()
        elif self._peek():
            yield self._where(), self._value()
        if self._peek():
            raise self._broken("something follows the end of the data")

    def _elements(self) -> Iterator[tuple[str, Any]]:
        self._take("[")
        if self._peek() == "]":
            self._take("]")
            return
        while True:
            yield self._where(), self._value()
            if self._peek() == "]":
                self._take("]")
                return
            self._take(",")
            self._peek()

    def _keys(self) -> Iterator[str]:
        """The keys of the object that begins here; after each, its value is to be read."""
        self._take("{")
        if self._peek() == "}":
            self._take("}")
            return
        while True:
            if self._peek() != '"':
                raise self._broken("a key in double quotes is missing")
            key = self._value()
            self._take(":")
            self._peek()
            yield key
            if self._peek() == "}":
                self._take("}")
                return
            self._take(",")

    def _holds_objects(self) -> bool:
        """Whether the list that begins here holds objects, by its first element."""
        ahead = 1
        while True:
            while self._at + ahead < len(self._buffer):
                character = self._buffer[self._at + ahead]
                if character not in SPACE:
                    return character in "{]"
                ahead += 1
            if self._ended:
                return False
            self._fill(CHUNK)

    def _value(self) -> Any:
        """The value that begins here, whole."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except RecursionError:
                raise self._broken("it is nested too deeply") from None
            except KeyTwice as error:
                raise self._broken(str(error)) from None
            except json.JSONDecodeError as error:
                # The value may go on past the buffer. Reading as much again each time keeps the work linear.
                if self._ended or len(self._buffer) - self._at > self._most:
                    self._move(min(error.pos, len(self._buffer)))
                    raise self._broken(error.msg) from None
                self._fill(max(CHUNK, len(self._buffer) - self._at))
                continue
            if end == len(self._buffer) and not self._ended:
                self._fill(CHUNK)  # a number may go on
                continue
            self._move(end)
            return value

    def _peek(self) -> str:
        """The next character that is no white space, or nothing at the end."""
        while True:
            end = self._at
            while end < len(self._buffer) and self._buffer[end] in SPACE:
                end += 1
            self._move(end)
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._fill(CHUNK)

    def _take(self, mark: str) -> None:
        if self._peek() != mark:
            found = repr(self._peek()) if self._peek() else "the end of the file"
            raise self._broken(f"expected {mark!r}, found {found}")
        self._at += 1

    def _move(self, end: int) -> None:
        self._line += self._buffer.count("\n", self._at, end)
        self._at = end

    def _fill(self, size: int) -> None:
        more = self._file.read(size)
        self._ended = not more
        self._buffer, self._at = self._buffer[self._at :] + more, 0

    def _where(self) -> str:
        return f"{self._path} line {self._line}"

    def _broken(self, why: str) -> DataError:
        return DataError(f"{self._where()}: not JSON ({why})")
