"""`sequential.json`: the plan by which seeds are added until the questions are decided, written before the first look."""

import json
from dataclasses import dataclass
from pathlib import Path

from tropism.atomic import write_text
from tropism.errors import RunFolderError
from tropism.results.text import number
from tropism.stats import Look

NAME = "sequential.json"
FORMAT = "tropism.sequential/1"


@dataclass(frozen=True)
class Sequential:
    """The planned looks."""

    looks: tuple[Look, ...]

    @property
    def alpha(self) -> float:
        """What all looks may spend together."""
        return sum(look.alpha for look in self.looks)

    def look(self, seeds: int) -> Look | None:
        """The look that results with this many seeds are read at; None before the first."""
        return max((look for look in self.looks if look.seeds <= seeds), key=lambda look: look.seeds, default=None)

    def said(self, seeds: int) -> str:
        """The rule, the looks that were taken and what they spent, in a sentence."""
        taken = [look for look in self.looks if look.seeds <= seeds]
        spent = ", ".join(f"{look.seeds} seeds {look.alpha:.2%}" for look in taken) or "none yet"
        return (
            f"Seeds were added until it was decided, at most {self.looks[-1].seeds}: the error of {self.alpha:.0%} is spent "
            f"over the looks as α·(S/{self.looks[-1].seeds})² (union bound), so that intervals cover at whatever look one "
            f"stops. Looks taken: {spent}. Intervals are those of the last look, and p-values are multiplied by "
            f"{number(self.alpha)}/α of it."
        )


def write(folder: Path, plan: Sequential) -> None:
    """Write the plan into an experiment's folder."""
    looks = [{"seeds": look.seeds, "alpha": look.alpha} for look in plan.looks]
    write_text(
        folder / NAME, json.dumps({"format": FORMAT, "rule": "power family, exponent 2", "looks": looks}, indent=1)
    )


def read(folder: Path) -> Sequential | None:
    """Read the plan, if there is one; raises `RunFolderError` where the file is damaged."""
    file = folder / NAME
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        looks = tuple(Look(int(one["seeds"]), float(one["alpha"])) for one in held["looks"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{file}: is not a plan of looks ({error!r}); run the experiment again") from None
    if not looks or not all(0 < look.alpha < 1 for look in looks):
        raise RunFolderError(f"{file}: a plan needs looks with an alpha between 0 and 1; run the experiment again")
    return Sequential(looks)
