"""Tables of an inoculation study: pressure by condition, the choice of a site, and what the runs left in the folder.

No model and no torch: everything is computed from tables or read back from files.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tropism import stats
from tropism.errors import DataError, UsageError
from tropism.names import BASE, run_name
from tropism.results.section import Table

SELECT, REPORT = "select", "report"
"""The half of the chats on which a site is chosen, and the half on which it is reported."""

_COLUMNS = ("condition", "chat", "site", "pressure", "cosine", "gradient_norm", "loss")


def check_pressures(table: pd.DataFrame, conditions: Sequence[str]) -> None:
    """Raise where a column or a condition is missing, or chats are not the same at every site and condition."""
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
            "one (one direction per site, one row per chat)"
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
    """Label each chat `select` or `report` at random; the same for the same set of chats in whatever order.

    >>> sorted(halves(["a", "b", "c", "d"]))
    ['report', 'report', 'select', 'select']
    """
    if len(set(chats)) < 4:
        raise UsageError(f"halves: needs at least 4 different chats to split in two, found {len(set(chats))}")
    # Sorted first, so that the split depends on which chats there are and not on how they were listed.
    ordered = sorted(set(chats), key=str)
    shuffled = np.random.default_rng(seed).permutation(len(ordered))
    chosen = {ordered[index] for index in shuffled[: len(ordered) // 2]}
    return [SELECT if chat in chosen else REPORT for chat in chats]


def reporting_half(random: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of random controls that were measured on the reporting half; all where they were not split."""
    return random[random["group"] == REPORT] if "group" in random.columns else random


def site_means(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean and 95 % interval over chats, by site and condition.

    Columns: `site, condition, metric, n, value, low, high`; the metrics are `pressure`, `cosine`, `loss`,
    `gradient_norm`.
    """
    rows = []
    for (site, condition), part in table.groupby(["site", "condition"], sort=False, observed=True):
        for metric in ("pressure", "cosine", "loss", "gradient_norm"):
            found = stats.interval_within_seeds(part[metric].to_numpy(dtype=np.float64)[None, :])
            rows.append((site, condition, metric, found.prompts, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["site", "condition", "metric", "n", "value", "low", "high"])


def paired_differences(table: pd.DataFrame, treated: str, baseline: str) -> pd.DataFrame:
    """Return `treated − baseline` of pressure at every site, paired by chat: t interval over chats, Holm's p over sites.

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
    """Return the site where the drop is largest in units of its own standard error: the lowest `value / (high − low)`."""
    # The width of a t interval over one set of chats is proportional to the standard error.
    width = (differences["high"] - differences["low"]).astype(float)
    score = (differences["value"] / width).where(width > 0)
    if score.isna().all():
        raise DataError("select_site: the paired differences vary at no site, so no site can be chosen")
    return str(differences["site"].to_numpy()[int(np.nanargmin(score.to_numpy()))])


def read_table(file: Path) -> pd.DataFrame | None:
    """Read a table that was written before training; None where it has no rows, so that its figure is not drawn."""
    table = pd.read_csv(file)
    return None if table.empty else table


def read_drift(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """Read mean projections by `condition, seed, prompt, position, site`; the untrained model's seed is ""."""
    columns = ["condition", "seed", "prompt", "position", "site", "n", "projection"]
    tables = []
    for condition, seed, path in _run_folders(folder, runs):
        if (path / "drift.csv").is_file():
            tables.append(pd.read_csv(path / "drift.csv").assign(condition=condition, seed=seed))
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def read_steps(folder: Path, runs: pd.DataFrame) -> pd.DataFrame | None:
    """Read pressure over training, `condition, seed, step, site, pressure`; None where none was logged."""
    rows = []
    for condition, seed, path in _run_folders(folder, runs):
        for row in _lines(path / "pressure.jsonl"):
            for name, value in row.items():
                if name.startswith("pressure/"):
                    rows.append((condition, int(seed), row["step"], name.removeprefix("pressure/"), value))
    return pd.DataFrame(rows, columns=["condition", "seed", "step", "site", "pressure"]) if rows else None


def read_elicited(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """Read the trait's mean under each evaluation system prompt, a column per condition; empty where nothing was asked."""
    rows = []
    for condition, _, path in _run_folders(folder, runs):
        for row in _lines(path / "elicitation.jsonl"):
            rows.append({"prompt": row["prompt"], "condition": condition, "value": row["value"]})
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).astype({"value": float})
    wide = table.pivot_table(index="prompt", columns="condition", values="value", sort=False, dropna=False)
    return wide.reset_index()


def as_table(title: str, table: pd.DataFrame, note: str) -> Table:
    """Turn a data frame into a table of the report."""
    return Table(title, list(table.columns), [[plain(v) for v in row] for row in table.itertuples(index=False)], note)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numpy's numbers as Python's, missing as None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _run_folders(folder: Path, runs: pd.DataFrame) -> Iterator[tuple[str, str, Path]]:
    """(condition, seed, folder) of the untrained model and of every run."""
    yield BASE, "", folder / run_name(BASE, None)
    for condition, seed in zip(runs["condition"].tolist(), runs["seed"].tolist(), strict=True):
        yield condition, str(seed), folder / run_name(condition, seed)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
