"""Put several experiments in one table: each keeps its own baseline, so the differences can be read across."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tropism.errors import RunFolderError, UsageError
from tropism.reports import export
from tropism.results.folder import load
from tropism.results.summary import summary_table

FORMATS = (".csv", ".md", ".tex")


def compare(folders: Sequence[Path]) -> pd.DataFrame:
    """Return the summary tables of several experiment folders below each other, each arm named `EXPERIMENT / arm`.

    Differences and p-values are to each experiment's own baseline. Nothing is pooled between experiments, since nothing
    says that their seeds or prompts are the same.

    Raises:
        UsageError: there are fewer than two folders, or one is given twice.
        RunFolderError: a folder cannot be read, or none has a measurement.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise UsageError(
            f"compare: needs two or more different experiment folders, found {', '.join(map(str, folders)) or 'none'}"
        )
    loaded = [load(folder) for folder in folders]
    names = [folder.name for folder in loaded]
    tables = []
    for index, folder in enumerate(loaded):
        # Two experiments of one name are told apart by their folders.
        name = names[index] if names.count(names[index]) == 1 else f"{names[index]} ({folders[index]})"
        table = summary_table(folder.results, folder.experiment, folder.scores, folder.look)
        if not table.empty:
            table.insert(0, "experiment", name)
            # An experiment without intervals has no p_holm at all, and columns of one type can be joined.
            tables.append(table.assign(arm=f"{name} / " + table["arm"]).astype({"p_holm": object}))
    if not tables:
        raise RunFolderError("compare: no run has finished in any of the folders, so there is nothing to compare")
    return pd.concat(tables, ignore_index=True)


def write(table: pd.DataFrame, target: Path) -> None:
    """Write the table as CSV (every number), Markdown or LaTeX (as it is read), by the file's ending.

    Raises:
        UsageError: the ending is none of these.
    """
    if target.suffix not in FORMATS:
        raise UsageError(f"--out: must end in {', '.join(FORMATS)}, found {target.name!r}")
    if target.suffix == ".csv":
        table.to_csv(target, index=False, lineterminator="\n")
        return
    header, rows = export.wide(table)
    text = export.markdown(header, rows) if target.suffix == ".md" else export.latex(header, rows)
    target.write_text(text, encoding="utf-8")
