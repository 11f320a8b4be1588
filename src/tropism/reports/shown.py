"""The report of a results folder, shown in a notebook."""

import html
from dataclasses import dataclass
from pathlib import Path

from tropism.reports.report import build


@dataclass(frozen=True)
class ShownReport:
    """A report; a notebook shows it in a frame of its own, so that neither changes the other's style."""

    path: Path
    height: int = 720

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:{self.height}px;border:0" title="report"></iframe>'


def show_report(folder: str | Path, height: int = 720) -> ShownReport:
    """Write the report of a results folder and return it, to be shown in a notebook; `path` is the file.

    Raises `RunFolderError` where this is not a results folder, or a file in it is damaged.

    >>> tp.show_report("runs/caps")  # doctest: +SKIP
    """
    return ShownReport(build(Path(folder)), height)
