"""Which questions of an experiment its intervals answer: what `--until decided` asks at every look."""

from typing import Any

import pandas as pd

from tropism.results.comparison import survives
from tropism.results.roles import Role, role_of
from tropism.results.summary import DEFAULT_MARGIN
from tropism.results.text import words
from tropism.results.verdict import DIAGNOSTIC_MODES
from tropism.stats import Verdict


def undecided(summary: pd.DataFrame, experiment: dict[str, Any]) -> list[str]:
    """Return the comparisons that are open, in words; empty where every question has an answer.

    Of an unwanted metric a guard's difference is decided where its interval lies on one side of 0 (and survives Holm's
    correction where it is over seeds), or wholly within ±0.05: too small to matter. A wanted metric is decided where it is
    kept or lost at its margin.
    """
    guards = summary[[role_of(experiment, name) is Role.GUARD for name in summary["condition"]]]
    asked = guards[(guards["mark"] != "") & ~guards["mode"].isin(DIAGNOSTIC_MODES)]
    return [_named(row) for row in asked.to_dict("records") if not _decided(row)]


def _decided(row: dict[Any, Any]) -> bool:
    if row["mark"] == "wanted":
        return bool(row["kept"] in (Verdict.KEPT, Verdict.LOST))
    low, high = row["difference_low"], row["difference_high"]
    if pd.isna(low) or pd.isna(high):
        return False
    if low > -DEFAULT_MARGIN and high < DEFAULT_MARGIN:
        return True
    return bool((high < 0 or low > 0) and survives(row))


def _named(row: dict[Any, Any]) -> str:
    return f"{words(str(row['arm']))} on {words(str(row['metric']))}, {words(str(row['eval_set']))}"
