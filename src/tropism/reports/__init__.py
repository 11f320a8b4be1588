"""Draw a results folder: tables, figures and one HTML file, with no model and no torch.

What the folder says is decided in `tropism.results`; here it is only drawn.

```text
report      the folder's report.html, figures/ and tables/    page        the HTML
figures/    SVG, PNG and PDF                                  svg         a figure as markup inside the page
export      CSV, Markdown, LaTeX                              responses   what each condition answered, for the page
terminal    the same table where the run was started          directions  the evidence for each direction
comparing   several experiments in one table                  strip       the small drawing in a cell of the table
shown       the report inside a notebook
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {"build": "reports.report", "summary_table": "results.summary", "load": "results.folder"}

__all__ = ["build", "load", "summary_table"]


def __getattr__(name: str) -> Any:
    # Whoever wants one of these names should not wait for matplotlib and jinja2 before asking for it.
    if name not in _HOME:
        raise AttributeError(f"module 'tropism.reports' has no attribute {name!r}")
    return getattr(import_module(f"tropism.{_HOME[name]}"), name)


if TYPE_CHECKING:
    from tropism.reports.report import build as build
    from tropism.results.folder import load as load
    from tropism.results.summary import summary_table as summary_table
