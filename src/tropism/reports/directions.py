"""Lay out the validity reports of directions: the evidence for each, the doubts, and the numbers at every site."""

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
    """(text, whether it is grave)."""
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


def view(name: str, report: Mapping[str, Any]) -> DirectionView:
    """Lay out a validity report; a column that no site has is left out."""
    sites = [site for site in report.get("sites") or [] if isinstance(site, Mapping)]
    known = []
    for key, label in _COLUMNS:
        if any(key in site for site in sites):
            known.append((key, label))
    columns = [label for _, label in known]
    behaviour = next((site["behaviour"]["name"] for site in sites if site.get("behaviour")), None)
    if behaviour:
        columns.append(f"correlation with {visible(behaviour)}")
    rows = []
    for site in sites:
        cells = [_cell(site, key) for key, _ in known]
        if behaviour:
            found = site.get("behaviour") or {}
            cells.append(f"{number(found.get('r'))} {span(found.get('low'), found.get('high'))}".rstrip())
        rows.append((visible(site.get("site", "")), cells))
    doubts = []
    # A report that another program wrote may have only warnings.
    for doubt in report.get("doubts") or report.get("warnings") or []:
        if isinstance(doubt, Mapping):
            doubts.append((visible(doubt.get("text", "")), bool(doubt.get("grave"))))
    return DirectionView(words(name), visible(report.get("summary") or ""), doubts, columns, rows)


def _cell(site: Mapping[str, Any], key: str) -> str:
    text = number(site.get(key))
    return f"{text} {span(site.get('auc_low'), site.get('auc_high'))}".rstrip() if key == "auc" else text
