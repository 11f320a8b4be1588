"""Write tables as files: CSV to compute with, Markdown to paste, LaTeX to print."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tropism.atomic import write_text
from tropism.results.text import rate, span, visible

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "·": r"\textperiodcentered{}",
    "—": "--",
}


def wide(summary: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the summary as a paper has it: a row per arm, a column per metric, intervals in brackets."""
    columns = list(summary[["metric", "eval_set", "mark"]].drop_duplicates().itertuples(index=False, name=None))
    header = [
        "condition",
        *(f"{metric}, {on}" + (f" ({mark})" if mark else "") for metric, on, mark in columns),
    ]
    rows = []
    for arm, mine in summary.groupby("arm", sort=False):
        cells = [str(arm)]
        for metric, on, _ in columns:
            found = mine[(mine["metric"] == metric) & (mine["eval_set"] == on)]
            cells.append("" if found.empty else _cell(found.iloc[0].to_dict()))
        rows.append(cells)
    return header, rows


def _cell(row: dict[str, object]) -> str:
    return f"{rate(row['value'])} {span(row['low'], row['high'])}".rstrip()


def write(folder: Path, name: str, summary: pd.DataFrame) -> None:
    """`NAME.csv` with every number in full, `NAME.md` and `NAME.tex` as they are read."""
    header, rows = wide(summary)
    write_text(folder / f"{name}.csv", summary.to_csv(index=False, lineterminator="\n"))
    write_text(folder / f"{name}.md", markdown(header, rows))
    write_text(folder / f"{name}.tex", latex(header, rows))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a pipe table."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "".join("| " + " | ".join(_markdown(cell) for cell in line) + " |\n" for line in lines)


def latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a `tabular` for booktabs."""
    lines = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in (header, *rows)]
    body = "\n".join(lines[1:])
    spec = "l" + "r" * (len(header) - 1)
    return (
        f"% needs "
        f"\\usepackage{{booktabs}}\n\\begin{{tabular}}{{{spec}}}\n\\toprule\n{lines[0]}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def _markdown(cell: str) -> str:
    return re.sub(r"([\\|<>*`])", r"\\\1", visible(cell)).replace("\n", " ")


def _latex(cell: str) -> str:
    return "".join(_LATEX.get(character, character) for character in visible(cell)).replace("\n", " ")
