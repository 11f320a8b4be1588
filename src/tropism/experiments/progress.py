"""What a run tells whoever watches it."""

from collections.abc import Mapping, Sequence


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
