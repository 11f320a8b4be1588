"""Write the report of an experiment into its folder: `report.html`, `figures/` and `tables/`."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from tropism.atomic import write_text
from tropism.errors import RunFolderError
from tropism.names import BASE
from tropism.reports import export
from tropism.reports.figures import style, tradeoff, training, validity
from tropism.reports.page import Drawn, Figures, render
from tropism.reports.svg import inline
from tropism.results.derived import derived_sections
from tropism.results.folder import ExperimentFolder, load
from tropism.results.roles import Role, role_of
from tropism.results.section import Section
from tropism.results.summary import arms, baseline_name, summary_table
from tropism.results.text import visible, words


def build(folder: Path) -> Path:
    """Write the report of an experiment's folder and return its path; the same folder gives the same bytes.

    `report.html` is one file that opens offline. `figures/` gets every figure as SVG, PNG and PDF, `tables/` the
    results as CSV, Markdown and LaTeX, and the tables of every analysis as CSV.

    Raises:
        RunFolderError: this is not an experiment folder, or a file in it is damaged; the message names file and line.

    Example:
        >>> build(Path("runs/caps"))  # doctest: +SKIP
        PosixPath('runs/caps/report.html')
    """
    loaded = load(Path(folder))
    summary = summary_table(loaded.results, loaded.experiment, loaded.scores, loaded.look)
    export.write(loaded.path / "tables", "summary", summary)
    analyses = [*derived_sections(summary, loaded), *loaded.analyses]
    for section in analyses:
        for index, table in enumerate(section.tables):
            name = style.safe_name(f"{section.name}-{index + 1}")
            rows = pd.DataFrame([list(row) for row in table.rows], columns=list(table.columns))
            write_text(loaded.path / "tables" / f"{name}.csv", rows.to_csv(index=False, lineterminator="\n"))
    target = loaded.path / "report.html"
    html = render(loaded, summary, analyses, _figures(loaded, summary, analyses))
    write_text(target, html)
    return target


def _figures(loaded: ExperimentFolder, summary: pd.DataFrame, analyses: list[Section]) -> Figures:
    return Figures(
        list(_tradeoff(loaded, summary)),
        list(_training(loaded)),
        dict(_validity(loaded)),
        {section.name: list(_of_analysis(loaded, section)) for section in analyses},
    )


def _marks(loaded: ExperimentFolder, names: list[tuple[str, str]]) -> dict[str, style.Mark]:
    """How each (label, condition) is drawn: baseline and base in ink, controls hollow."""
    baseline = baseline_name(loaded.experiment)
    plain = [label for label, condition in names if condition == baseline]
    plain += [label for label, condition in names if condition == BASE]
    hollow = [label for label, condition in names if role_of(loaded.experiment, condition) is Role.CONTROL]
    return style.marks([label for label, _ in names], plain=plain, hollow=hollow)


def _tradeoff(loaded: ExperimentFolder, summary: pd.DataFrame) -> Iterator[Drawn]:
    marks = _marks(loaded, [(label, condition) for condition, _, label in arms(loaded.results, loaded.experiment)])
    for unwanted, wanted in tradeoff.panels(summary):
        name = f"tradeoff-{style.safe_name(unwanted[0])}-{style.safe_name(unwanted[1])}"
        svg = tradeoff.draw(summary, unwanted, wanted, marks, loaded.path / "figures", name)
        caption = f"{words(unwanted[0])} on {words(unwanted[1])} against {words(wanted[0])} on {words(wanted[1])}"
        yield Drawn(name, caption, inline(svg, name, caption))


def _training(loaded: ExperimentFolder) -> Iterator[Drawn]:
    runs: dict[str, list[list[dict[str, object]]]] = {}
    for run in loaded.finished:
        # The untrained model has no training to draw.
        if run.seed is not None and (rows := run.training()):
            runs.setdefault(run.condition, []).append(rows)
    marks = _marks(loaded, [(condition, condition) for condition in runs])
    for reading in training.readings(runs):
        name = f"training-{style.safe_name(reading.name)}"
        svg = training.draw(runs, reading, marks, loaded.path / "figures", name)
        yield Drawn(name, reading.caption, inline(svg, name, reading.caption))


def _validity(loaded: ExperimentFolder) -> Iterator[tuple[str, list[Drawn]]]:
    for direction, report in loaded.validity.items():
        name, folder = f"direction-{style.safe_name(direction)}", loaded.path / "figures"
        sites, drawn = validity.sites_of(report), []
        if len(sites) > 1:
            caption = f"{words(direction)}: how well each site tells held-out positive from negative chats apart"
            drawn.append(Drawn(name, caption, inline(validity.draw_auc(sites, folder, name), name, caption)))
        if sites:
            # The best site by the lower end of its interval: a lucky point does not lead.
            best = max(sites, key=lambda site: float(site.get("auc_low", site["auc"])))
            at = f"{name}-projections"
            svg = validity.draw_projections(best, folder, at)
            if svg is not None:
                caption = f"{words(direction)}: projections of held-out chats at {visible(best.get('site', ''))}"
                drawn.append(Drawn(at, caption, inline(svg, at, caption)))
        yield words(direction), drawn


def _of_analysis(loaded: ExperimentFolder, section: Section) -> Iterator[Drawn]:
    for index, figure in enumerate(section.figures):
        path = loaded.path / "figures" / f"{figure.file}.svg"
        # The name comes from a file in the folder: it may not lead out of figures/.
        if Path(figure.file).name != figure.file or not path.is_file():
            raise RunFolderError(
                f"analyses/{section.name}.json: names the figure {visible(figure.file)!r}, which figures/ does not have; "
                "run the analysis again"
            )
        svg = path.read_text(encoding="utf-8")
        prefix = style.safe_name(f"{section.name}-{index}")
        yield Drawn(figure.file, visible(figure.caption), inline(svg, prefix, visible(figure.caption)))
