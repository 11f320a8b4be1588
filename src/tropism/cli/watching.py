"""Progress in a terminal: one line that lives, and one that stays for every finished run; plain lines in a pipe."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from tropism.experiments.progress import Progress as Reporter


class Watching(Reporter):
    """Which run of how many, step, loss, and the time left: of the run by its steps, of all by the runs before."""

    def __init__(self, silent: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=silent)
        self._bar = Progress(
            TextColumn("[bold]{task.fields[run]}"), TextColumn("{task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[detail]}"),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._task: Any = None
        self._run, self._left, self._durations = "", 0, list[float]()
        self._phase, self._phase_began, self._printed = "", 0.0, 0.0

    def __enter__(self) -> "Watching":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        self.console.print(f"[dim]{escape(line)}[/dim]", soft_wrap=True)

    def plan(self, todo: Sequence[str], finished: int) -> None:
        if not todo:
            self.console.print(f"nothing to do: all {finished} runs are finished")
        elif finished:
            self.console.print(f"{finished} runs are finished and kept, {len(todo)} to do")
        else:
            self.console.print(f"{len(todo)} runs to do; interrupt at any time, finished runs are kept")

    def start(self, name: str, index: int, of: int) -> None:
        self._run, self._left = f"run {index}/{of} {name}", of - index
        self._phase = ""

    def phase(self, what: str, done: int, of: int, values: Mapping[str, float] | None = None) -> None:
        now = time.monotonic()
        if what != self._phase:
            self._phase, self._phase_began, self._printed = what, now, 0.0
        detail = f"loss {values['loss']:.3f}  " if values and "loss" in values else ""
        if done > 1:
            detail += f"{_clock((now - self._phase_began) / (done - 1) * (of - done))} left in this step"
        if self._durations and self._left:
            detail += (
                f", about {_clock(sum(self._durations) / len(self._durations) * self._left)} for the runs after it"
            )
        if self._task is None:
            self._task = self._bar.add_task(what, total=max(of, 1), run=self._run, detail=detail)
        self._bar.update(self._task, description=what, completed=done, total=max(of, 1), run=self._run, detail=detail)
        # without a terminal: a line every ten seconds, so that a log shows life
        if not self.console.is_terminal and now - self._printed > 10:
            self._printed = now
            self.console.print(f"{self._run}  {what} {done}/{of}  {detail}")

    def finish(self, name: str, seconds: float, outcome: str) -> None:
        self._durations.append(seconds)
        # Done, but without a metric or an analysis, is neither.
        partly = "[yellow]![/yellow]" if outcome.startswith("done") else "[red]✗[/red]"
        mark = "[green]✓[/green]" if outcome == "done" else partly
        self.console.print(
            f"{mark} {escape(name)}  {_clock(seconds)}" + ("" if outcome == "done" else f"  {escape(outcome)}")
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
