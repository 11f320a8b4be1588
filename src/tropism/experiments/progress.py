"""What a run tells whoever watches it."""

from collections.abc import Mapping, Sequence
from typing import Any

from tropism import notebook


class Progress:
    """Silent; the command line's prints. Every method may be overridden."""

    def say(self, line: str) -> None:
        """A sentence for the reader: a model's source, a warning about directions."""

    def plan(self, todo: Sequence[str], finished: int) -> None:
        """The runs to come, and how many were finished before."""

    def start(self, name: str, index: int, of: int) -> None:
        """A run begins: the `index`-th of `of`, counting from 1."""

    def phase(self, what: str, done: int, of: int, values: Mapping[str, float] | None = None) -> None:
        """Within a run: `training` step by step with loss and learning rate, `generating` prompt by prompt."""

    def finish(self, name: str, seconds: float, outcome: str) -> None:
        """A run ended: `done`, or why it failed."""


class NotebookProgress(Progress):
    """One line that lives in a notebook's cell, and one that stays for every finished run."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html: Any = HTML
        self._cell: Any = display(HTML(""), display_id=True)
        self._run, self._lines = "", list[str]()

    def say(self, line: str) -> None:
        self._lines.append(line)
        self._show("")

    def plan(self, todo: Sequence[str], finished: int) -> None:
        self.say(f"{len(todo)} runs to do, {finished} finished before")

    def start(self, name: str, index: int, of: int) -> None:
        self._run = f"run {index} of {of}, {name}"

    def phase(self, what: str, done: int, of: int, values: Mapping[str, float] | None = None) -> None:
        loss = f", loss {values['loss']:.3f}" if values and "loss" in values else ""
        self._show(f"{self._run}: {what} {done} of {of}{loss}")

    def finish(self, name: str, seconds: float, outcome: str) -> None:
        self.say(f"{name}: {outcome}, {seconds:.0f} s")

    def _show(self, now: str) -> None:
        self._cell.update(self._html(notebook.table("Experiment", (), [[line] for line in self._lines], now)))


def default_progress() -> Progress:
    """Tell a notebook what goes on, and nobody elsewhere."""
    return NotebookProgress() if notebook.running() else Progress()
