"""What a finished run, or a finished experiment, has no value of, and why."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """A metric without a score, or an analysis that could not be computed; everything else was kept."""

    what: Literal["metric", "analysis"]
    name: str
    reason: str
    eval_set: str = ""
    mode: str = ""
    again: bool = False
    """Whether the next run of the experiment tries again: it ended in an error, rather than in samples without a score."""

    def __str__(self) -> str:
        where = f" on {self.eval_set}" if self.eval_set else ""
        mode = f" ({self.mode})" if self.mode not in ("", "full") else ""
        return f"{self.what} {self.name!r}{where}{mode}: {self.reason}"
