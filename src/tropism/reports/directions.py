"""The validity reports of directions, laid out: what speaks for each, what against, and the numbers at every
site.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tropism.results.text import number, span, visible, words

_COLUMNS = (
    ("auc", "held-out AUC"),
    ("p_shuffled", "p, shuffled labels"),
    ("norm", "norm"),
    ("share_in_largest", "share in largest dims"),
    ("n_positive", "n positive"),
    ("n_negative", "n negative"),
)


@dataclass(frozen=True)
class DirectionView:
    """One direction's evidence, ready to be shown."""

    name: str
    summary: str
    doubts: Sequence[tuple[str, bool]]
    """(what, whether it is grave)."""
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


def view(name: str, report: Mapping[str, Any]) -> DirectionView:
    """Lay out a validity report; what it does not have is not shown."""
    sites = [site for site in report.get("sites") or [] if isinstance(site, Mapping)]
    known = [(key, label) for key, label in _COLUMNS if any(key in site for site in sites)]
    behaviour = next((site["behaviour"]["name"] for site in sites if site.get("behaviour")), None)
    columns = [label for _, label in known] + ([f"correlation with {visible(behaviour)}"] if behaviour else [])
    rows = []
    for site in sites:
        cells = [_cell(site, key) for key, _ in known]
        if behaviour:
            found = site.get("behaviour") or {}
            cells.append(f"{number(found.get('r'))} {span(found.get('low'), found.get('high'))}".rstrip())
        rows.append((visible(site.get("site", "")), cells))
    doubts = [
        (visible(doubt.get("text", "")), bool(doubt.get("grave")))
        for doubt in report.get("doubts") or report.get("warnings") or []  # a foreign report may have only the latter
        if isinstance(doubt, Mapping)
    ]
    return DirectionView(words(name), visible(report.get("summary") or ""), doubts, columns, rows)


def _cell(site: Mapping[str, Any], key: str) -> str:
    text = number(site.get(key))
    return f"{text} {span(site.get('auc_low'), site.get('auc_high'))}".rstrip() if key == "auc" else text
