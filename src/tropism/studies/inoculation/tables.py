"""Tables of pressure by condition: means, paired differences with Holm's correction, and the choice of a site."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tropism import stats
from tropism.errors import DataError, UsageError

SELECT, REPORT = "select", "report"
"""The half of the chats on which a site is chosen, and the half on which it is reported."""

_COLUMNS = ("condition", "chat", "site", "pressure", "cosine", "gradient_norm", "loss")


def check_pressures(table: pd.DataFrame, conditions: Sequence[str]) -> None:
    """Raise where columns are missing, a condition is absent, or chats are not the same at every site and condition."""
    missing = [column for column in _COLUMNS if column not in table.columns]
    if missing:
        raise UsageError(f"pressures: needs the columns {', '.join(_COLUMNS)}; lacks {', '.join(missing)}")
    absent = [name for name in conditions if name not in set(table["condition"])]
    if absent:
        there = ", ".join(sorted(set(table["condition"])))
        raise UsageError(f"pressures: has no condition {absent[0]!r}; it has: {there}")
    cells = table.groupby(["condition", "site", "chat"], observed=True).size()
    if (cells > 1).any():
        condition, site, chat = cells.index[int((cells > 1).to_numpy().argmax())]
        raise DataError(
            f"pressures: chat {chat!r} has {cells.max()} rows at {site} in condition {condition!r}; pairing needs "
            "one (one direction a site, one row a chat)"
        )
    wide = table.pivot_table(
        index="chat", columns=["condition", "site"], values="pressure", dropna=False, observed=True
    )
    gaps = wide.isna().to_numpy()
    if gaps.any():
        row, column = np.argwhere(gaps)[0]
        condition, site = wide.columns[column]
        raise DataError(
            f"pressures: chat {wide.index[row]!r} has no finite pressure at {site} in condition {condition!r}; "
            "pairing needs every chat at every site in every condition"
        )


def halves(chats: Sequence[str | int], seed: int = 0) -> list[str]:
    """One label a chat, `select` or `report`, at random; the same for the same set of chats in whatever order.

    >>> sorted(halves(["a", "b", "c", "d"]))
    ['report', 'report', 'select', 'select']
    """
    if len(set(chats)) < 4:
        raise UsageError(f"halves: needs at least 4 different chats to split in two, found {len(set(chats))}")
    ordered = sorted(set(chats), key=str)
    shuffled = np.random.default_rng(seed).permutation(len(ordered))
    chosen = {ordered[index] for index in shuffled[: len(ordered) // 2]}
    return [SELECT if chat in chosen else REPORT for chat in chats]


def site_means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval over chats, by site and condition.

    Columns: `site, condition, metric, n, value, low, high`; metrics are `pressure`, `cosine`, `loss`, `gradient_norm`.
    """
    rows = []
    for (site, condition), part in table.groupby(["site", "condition"], sort=False, observed=True):
        for metric in ("pressure", "cosine", "loss", "gradient_norm"):
            found = stats.interval_within_seeds(part[metric].to_numpy(dtype=np.float64)[None, :])
            rows.append((site, condition, metric, found.prompts, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["site", "condition", "metric", "n", "value", "low", "high"])


def paired_differences(table: pd.DataFrame, treated: str, baseline: str) -> pd.DataFrame:
    """`treated − baseline` of pressure at every site, paired by chat: t interval over chats, Holm's p over sites.

    Columns: `site, contrast, n, value, low, high, p, p_holm`.
    """
    columns = table[table["condition"].isin([treated, baseline])]
    wide = columns.pivot_table(index="chat", columns=["condition", "site"], values="pressure", observed=True)
    rows = []
    for site in dict.fromkeys(table["site"]):
        differences = (wide[treated][site] - wide[baseline][site]).to_numpy()
        found = stats.interval_within_seeds(differences[None, :])
        rows.append((site, f"{treated} − {baseline}", found.prompts, found.value, found.low, found.high, found.p))
    result = pd.DataFrame(rows, columns=["site", "contrast", "n", "value", "low", "high", "p"])
    result["p_holm"] = stats.holm([None if pd.isna(p) else float(p) for p in result["p"]])
    return result


def select_site(differences: pd.DataFrame) -> str:
    """The site where the drop is largest in units of its own standard error, by the lowest `value / (high − low)`."""
    width = (differences["high"] - differences["low"]).astype(float)
    score = (differences["value"] / width).where(width > 0)
    if score.isna().all():
        raise DataError("select_site: the paired differences vary at no site, so no site can be chosen")
    return str(differences["site"].to_numpy()[int(np.nanargmin(score.to_numpy()))])
