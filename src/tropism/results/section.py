"""What an analysis hands to the report: claims by rule, tables, figures and notes, as one JSON file.

Written to `analyses/NAME.json` in a run's folder; the report needs nothing else, no model and no torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tropism.atomic import write_text

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
"""The verdicts that every rule has; some have more."""


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
    """A figure in `figures/`, by its name without extension (SVG, PNG and PDF lie there)."""

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
    """The figure that stands on the report's first screen; where there is none, the trade-off does."""

    def save(self, folder: Path) -> Path:
        """Write `analyses/NAME.json` under a run's folder."""
        target = folder / "analyses" / f"{self.name}.json"
        write_text(target, json.dumps(asdict(self), indent=1, allow_nan=False))
        return target

    @classmethod
    def load(cls, path: Path) -> "Section":
        """Read what `save` wrote."""
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
