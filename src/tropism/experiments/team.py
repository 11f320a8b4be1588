"""Several processes that evaluate one run: each takes its share of what a model computes, and all have what all found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tropism.experiments.problems import as_said, raised_from

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """Which of how many processes this is; torch.distributed must be up where there are several."""

    rank: int = 0
    of: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that asks others and writes."""
        return self.rank == 0

    def takes(self, number: int) -> bool:
        """Whether the piece of work with this number is this process's."""
        return number % self.of == self.rank

    def gathered(self, find: Callable[[], T]) -> list[T]:
        """Return what `find` gives in each process, in their order; what it raises in one is raised in all."""
        if self.of == 1:
            return [find()]
        found: T | None = None
        error: Exception | None = None
        try:
            found = find()
        except Exception as raised:  # noqa: BLE001 - raised again below, once the others know that nothing comes from here
            error = raised
        told: list[Any] = [None] * self.of
        _tell_all(told, (found, None if error is None else as_said(error)))
        if error is not None:
            raise error
        for _, said in told:
            if said is not None:
                raise raised_from(said)
        return [part for part, _ in told]


ALONE = Team()
"""One process, which takes everything."""


def _tell_all(told: list[Any], mine: Any) -> None:
    import torch.distributed

    torch.distributed.all_gather_object(told, mine)
