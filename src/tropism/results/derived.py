"""Sections that follow from a results folder alone, without an analysis in the experiment file.

Each is written by the study it belongs to and loaded by name, as `analyses:` are: what draws a report need not know
which studies exist.
"""

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module

import pandas as pd

from tropism.results.folder import RunFolder
from tropism.results.section import Section

DERIVED: dict[str, str] = {"concept_ablation": "tropism.studies.concept_ablation.hypotheses:sections"}
"""Study → `module:function`, called with the summary table and the folder."""


def derived_sections(summary: pd.DataFrame, folder: RunFolder) -> Iterator[Section]:
    """Every section that the table gives by itself, study by study."""
    for place in DERIVED.values():
        module, _, name = place.partition(":")
        sections: Callable[[pd.DataFrame, RunFolder], Iterable[Section]] = getattr(import_module(module), name)
        yield from sections(summary, folder)
