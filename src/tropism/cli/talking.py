"""A conversation in the terminal: read prompts and commands, show the answers in columns, or as plain text in a pipe.

What a model wrote is shown as text, never as markup, with control characters written out: no answer can colour, move or
clear anything.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tropism.errors import DataError, UsageError
from tropism.results.text import visible

if TYPE_CHECKING:
    from tropism.experiments.after.chat import Chat

NARROWEST = 28
"""Columns narrower than this are hard to read; the answers are then shown one below another."""
COMMANDS = "/system TEXT sets a system prompt (/system alone: none) · /reset starts over · /quit or Ctrl-D exits"


class _Left(Exception):
    """The reader has had enough."""


class Talking:
    """Show a chat; `fresh` starts a new conversation at every prompt."""

    def __init__(self, fresh: bool = False, out: Console | None = None, notes: Console | None = None) -> None:
        self.fresh = fresh
        self.out = out or Console(highlight=False)
        self.notes = notes or Console(stderr=True, highlight=False)

    def talk(self, chat: "Chat", prompts: Sequence[str] | None) -> None:
        """Ask `prompts`, or else what is typed or piped in, until it ends.

        Raises `UsageError` for a prompt that cannot be asked; at a terminal it is shown, and the conversation goes on.
        """
        for note in chat.notes:
            self._note(note)
        if prompts is None and sys.stdin.isatty():
            self._introduce(chat)
            self._converse(chat)
            return
        asked = 0
        try:
            for line in prompts if prompts is not None else _piped():
                asked += self._take(chat, line, echo=True)
        except _Left:
            return
        if not asked:
            raise UsageError("no prompt to ask; give --prompt TEXT, or one prompt per line on standard input")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show what is going on, at a terminal."""
        if not self.notes.is_terminal:
            yield
            return
        with self.notes.status(Text(what, style="dim")):
            yield

    def _converse(self, chat: "Chat") -> None:
        with suppress(ImportError):  # where readline exists, `input` gets line editing and a history
            import readline  # noqa: F401

        while True:
            try:
                line = input("\nyou> ")
            except (EOFError, KeyboardInterrupt):
                self.out.print()
                return
            try:
                self._take(chat, line, echo=False)
            except _Left:
                return
            except UsageError as error:
                self._note(str(error))
            except KeyboardInterrupt:
                self._note("stopped; the prompt was dropped")

    def _take(self, chat: "Chat", line: str, *, echo: bool) -> bool:
        """Do what a line says, and return whether it was a prompt."""
        if line.startswith("/"):
            self._command(chat, line.strip())
            return False
        prompt = line.strip()
        if not prompt:
            return False
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError("a prompt must be text in UTF-8, found other bytes") from None
        if self.fresh:
            chat.reset()
        answers = self._ask(chat, prompt)
        self._show(chat.labels, answers, prompt if echo else None)
        return True

    def _ask(self, chat: "Chat", prompt: str) -> list[str]:
        if not self.notes.is_terminal:
            return chat.ask(prompt)
        with self.notes.status("") as status:
            return chat.ask(
                prompt, lambda label, i, of: status.update(Text(f"{label} is answering ({i + 1}/{of})", style="dim"))
            )

    def _command(self, chat: "Chat", line: str) -> None:
        name, _, rest = line.partition(" ")
        if name == "/quit":
            raise _Left
        if name == "/reset":
            chat.reset()
            self._note("a new conversation" + (", with the same system prompt" if chat.system is not None else ""))
        elif name == "/system":
            chat.instruct(rest.strip() or None)
            self._note(
                "a new conversation, " + ("with this system prompt" if chat.system else "without a system prompt")
            )
        elif name == "/help":
            self._note(COMMANDS)
        else:
            raise UsageError(
                f"unknown command {name!r}: {COMMANDS}; to ask a prompt that starts with /, put a space before it"
            )

    def _introduce(self, chat: "Chat") -> None:
        options = chat.options
        how = "greedy" if options.temperature == 0 else f"temperature {options.temperature:g}"
        self.out.print(Text(" | ".join(chat.labels), style="bold"))
        self._note(f"responses of at most {options.max_new_tokens} tokens, {how}; guards are off, as at evaluation")
        self._note(COMMANDS)

    def _show(self, labels: Sequence[str], answers: Sequence[str], prompt: str | None) -> None:
        if prompt is not None:
            self.out.print(Text(f"> {visible(prompt)}", style="bold"), soft_wrap=not self.out.is_terminal)
            self.out.print()
        if self.out.is_terminal and self.out.width // len(labels) >= NARROWEST:
            table = Table(box=box.MINIMAL, show_edge=False, pad_edge=False, expand=True, header_style="bold cyan")
            for label in labels:
                table.add_column(Text(label), ratio=1, overflow="fold")
            table.add_row(*map(_shown, answers))
            self.out.print(table)
        else:
            for label, answer in zip(labels, answers, strict=True):
                self.out.print(Text(f"[{label}]", style="bold cyan"))
                self._stacked(answer)
        if prompt is not None:
            self.out.print()

    def _stacked(self, answer: str) -> None:
        """Print an answer indented, so that none can pass for a heading."""
        if self.out.is_terminal:
            self.out.print(Padding(_shown(answer), (0, 0, 0, 2)))
            return
        for line in _shown(answer).plain.split("\n"):
            self.out.print(Text(f"  {line}"), soft_wrap=True)

    def _note(self, text: str) -> None:
        self.notes.print(Text(visible(text), style="dim"), soft_wrap=not self.notes.is_terminal)


def _shown(answer: str) -> Text:
    text = visible(answer).strip("\n")
    return Text(text) if text.strip() else Text("(no text)", style="dim")


def _piped() -> Iterator[str]:
    try:
        for line in sys.stdin:
            yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input must be text in UTF-8, found {error.object[error.start]:#04x}") from None
