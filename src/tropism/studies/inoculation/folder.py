"""What an inoculation study left in an experiment's folder, read back as tables: no model, no torch."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from tropism.experiments.store import Folder, RunKey
from tropism.names import BASE
from tropism.results.section import Table


def read(file: Path) -> pd.DataFrame | None:
    """A table that was written; None where it has no rows, so that its figure is not drawn."""
    table = pd.read_csv(file)
    return None if table.empty else table


def _folders(folder: Path, runs: pd.DataFrame) -> Iterator[tuple[str, str, Path]]:
    """(condition, seed, folder) of the untrained model and of every run."""
    yield BASE, "", Folder(folder).run_path(RunKey(BASE, None))
    for condition, seed in zip(runs["condition"].tolist(), runs["seed"].tolist(), strict=True):
        yield condition, str(seed), Folder(folder).run_path(RunKey(condition, seed))


def drift(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """Mean projections by `condition, seed, prompt, position, site`; the seed is "" for the untrained model."""
    columns = ["condition", "seed", "prompt", "position", "site", "n", "projection"]
    tables = [
        pd.read_csv(path / "drift.csv").assign(condition=condition, seed=seed)
        for condition, seed, path in _folders(folder, runs) if (path / "drift.csv").is_file()
    ]  # fmt: skip
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def steps(folder: Path, runs: pd.DataFrame) -> pd.DataFrame | None:
    """Pressure over training, `condition, seed, step, site, pressure`; None where none was logged."""
    rows = [
        (condition, int(seed), row["step"], name.removeprefix("pressure/"), value)
        for condition, seed, path in _folders(folder, runs) if condition != BASE
        for row in _lines(path / "pressure.jsonl")
        for name, value in row.items() if name.startswith("pressure/")
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["condition", "seed", "step", "site", "pressure"]) if rows else None


def elicited(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """The trait's mean under each evaluation system prompt, one column a condition; empty where nothing was asked."""
    rows = [
        {"prompt": row["prompt"], "condition": condition, "value": row["value"]}
        for condition, _, path in _folders(folder, runs) for row in _lines(path / "elicitation.jsonl")
    ]  # fmt: skip
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).astype({"value": float})
    wide = table.pivot_table(index="prompt", columns="condition", values="value", sort=False, dropna=False)
    return wide.reset_index()


def as_table(title: str, table: pd.DataFrame, note: str) -> Table:
    """A table for the report."""
    return Table(title, list(table.columns), [[plain(v) for v in row] for row in table.itertuples(index=False)], note)


def plain(value: Any) -> Any:
    """As JSON has it: numpy's numbers as Python's, missing as None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.item() if hasattr(value, "item") else value  # numpy's scalars
