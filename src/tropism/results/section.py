"""What an analysis hands to the report: claims by rule, tables, figures and notes, as one JSON file.

It is written to `analyses/NAME.json` in the experiment's folder. The report needs nothing else, no model and no torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tropism.atomic import write_text


@dataclass(frozen=True)
class Claim:
    """A rule evaluated on a table: what was asked, what came out, and every number it rests on."""

    claim: str
    verdict: str
    """`supported`, `not supported`, `undecided`, or the name of the outcome that the rule picks."""
    because: str
    """One sentence with the numbers."""
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A small table, shown in the report and written as CSV beside it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure in `figures/`, by its name without extension; SVG, PNG and PDF are there."""

    file: str
    caption: str


@dataclass(frozen=True)
class Section:
    """One analysis, ready to be shown."""

    name: str
    title: str
    summary: str
    claims: Sequence[Claim] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    lead: str = ""
    """The figure on the report's first screen; empty for the trade-off."""

    def save(self, folder: Path) -> Path:
        """Write `analyses/NAME.json` in an experiment's folder and return its path."""
        target = folder / "analyses" / f"{self.name}.json"
        write_text(target, json.dumps(asdict(self), indent=1, allow_nan=False))
        return target

    @classmethod
    def load(cls, path: Path) -> "Section":
        """Read a section that `save` wrote; raise `KeyError` or `TypeError` where the file holds something else."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            raw["name"],
            raw["title"],
            raw["summary"],
            tuple(Claim(**claim) for claim in raw["claims"]),
            tuple(Table(**table) for table in raw["tables"]),
            tuple(Figure(**figure) for figure in raw["figures"]),
            tuple(raw["notes"]),
            raw.get("lead", ""),
        )
