"""Results → tables, figures and one HTML file, from a run's folder alone: no model, no torch.

```text
folder      reads and checks a run's folder        verdict     the answer in a sentence, by rule
summary     measurements → values with intervals   hypotheses  what concept ablation predicts, by rule
figures/    SVG, PNG and PDF                       page        the HTML
export      CSV, Markdown, LaTeX                   terminal    the same table where the run was started
section     what an analysis hands to the report   comparing   several experiments in one table
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {"build": "reports.report", "summary_table": "results.summary", "load": "results.folder"}

__all__ = ["build", "load", "summary_table"]


def __getattr__(name: str) -> Any:
    # An analysis imports `reports.section` alone and should not wait for matplotlib and jinja2.
    if name not in _HOME:
        raise AttributeError(f"module 'tropism.reports' has no attribute {name!r}")
    return getattr(import_module(f"tropism.{_HOME[name]}"), name)


if TYPE_CHECKING:
    from tropism.reports.report import build as build
    from tropism.results.folder import load as load
    from tropism.results.summary import summary_table as summary_table
