"""SORRY-Bench's and XSTest's prompts as an evaluation asks them; their files are read as sources of data are."""

from collections.abc import Callable
from pathlib import Path

from tropism.data.sources.refusal_prompts import CATEGORIES as CATEGORIES
from tropism.data.sources.refusal_prompts import Expected as Expected
from tropism.data.sources.refusal_prompts import TaskPrompt as TaskPrompt
from tropism.data.sources.refusal_prompts import sorry_bench as sorry_bench
from tropism.data.sources.refusal_prompts import xstest as xstest

SUITES: dict[str, Callable[[str | Path], list[TaskPrompt]]] = {
    "sorry-bench": sorry_bench,
    "xstest": xstest,
    "over-refusal": xstest,
}
"""Readers of question files by the suite's name on the command line."""
