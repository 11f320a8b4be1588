"""Sections that follow from a results folder alone, without an analysis in the experiment file.

Each is written by the study it belongs to and loaded by name, as `analyses:` are, so that what draws a report need
not know which studies exist.
"""

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module

import pandas as pd

from tropism.results.folder import ExperimentFolder
from tropism.results.section import Section

DERIVED: dict[str, str] = {"concept_ablation": "tropism.studies.concept_ablation.from_table:sections"}
"""Study → `module:function`, called with the summary table and the folder."""


def derived_sections(summary: pd.DataFrame, folder: ExperimentFolder) -> Iterator[Section]:
    """Yield every section that follows from the table by itself, study by study."""
    for place in DERIVED.values():
        module, _, name = place.partition(":")
        sections: Callable[[pd.DataFrame, ExperimentFolder], Iterable[Section]] = getattr(import_module(module), name)
        yield from sections(summary, folder)
