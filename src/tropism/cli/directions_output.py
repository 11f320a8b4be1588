"""What `tropism directions` prints: the contents of a file, and its validity report."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tropism.directions.artifact import Directions
    from tropism.directions.validity import ValidityReport


def progress_console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def status(text: str) -> Any:
    return progress_console().status(text)


def say(text: str) -> None:
    from rich.console import Console

    Console(soft_wrap=True, highlight=False).print(text)


def show_directions(directions: "Directions", path: "Path") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    about = directions.provenance
    model, finder, contrast = (about.get(key) or {} for key in ("model", "finder", "contrast"))
    facts = {
        "file": str(path),
        "model": " ".join(str(model[key]) for key in ("name", "revision") if model.get(key)) or "not recorded",
        "found by": f"{finder['name']} on {contrast['positive']} positive and {contrast['negative']} negative chats "
        f"({contrast['kind'].replace('_', ' ')}), positions {about['positions']}"
        if finder and contrast
        else about.get("imported", {}).get("format", "not recorded"),
        "width": str(directions.width),
        "sites": ", ".join(map(str, directions.sites))
        if len(directions.sites) < 5
        else f"{len(directions.sites)}, from {directions.sites[0]} to {directions.sites[-1]}",
        "control": about.get("control", ""),
        "forced onto": (about.get("forced_onto") or {}).get("name", ""),
        "tropism": about.get("tropism", ""),
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            grid.add_row(f"[bold]{name}[/bold]", escape(value))
    console = Console(highlight=False)
    console.print(grid)
    table = Table("site", "directions", "norms", box=None, header_style="bold", pad_edge=False)
    for site, rows in directions.vectors.items():
        norms = rows.norm(dim=1)
        spread = f"{norms.min():.2f}" if len(norms) == 1 else f"{norms.min():.2f} to {norms.max():.2f}"
        table.add_row(str(site), str(rows.shape[0]), spread)
    console.print(table)


def print_report(report: "ValidityReport") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    seen = next((site.behaviour for site in report.sites if site.behaviour is not None), None)
    head = ["site", "AUC (95%)", "apart", "by chance", f"top {len(report.sites[0].largest_dimensions)} dims"]
    table = Table(*head, *(["r (95%)"] if seen else []), box=None, header_style="bold", pad_edge=False)
    for site in report.sites:
        colour = "green" if site.auc_low > 0.75 else "yellow" if site.auc_low > 0.5 else "red"
        typical = sorted(site.null_separation)[len(site.null_separation) // 2]
        cells = [
            _short(site.site),
            f"[{colour}]{site.auc:.3f}[/{colour}] ({site.auc_low:.2f}, {site.auc_high:.2f})",
            f"{site.separation:.2f}",
            f"{typical:.2f}",
            f"{site.share_in_largest:.0%}",
        ]
        found = site.behaviour
        if seen:
            known = found is not None and found.r is not None
            cells.append(
                f"{found.r:.2f} ({found.low:.2f}, {found.high:.2f})" if found is not None and known else "none"
            )
        table.add_row(*cells)
    console.print(table)
    legend = "apart: distance between the sides' means along the directions; by chance: the same with shuffled labels"
    console.print(
        legend + (f"; r: correlation with {seen.name} on {seen.n} generated answers" if seen else ""), style="dim"
    )
    names = sorted({name for site in report.sites for name in site.angles})
    if names:
        angles = Table("degrees to", *names, box=None, header_style="bold", pad_edge=False)
        for site in report.sites:
            angles.add_row(
                _short(site.site), *(f"{min(site.angles[n]):.0f}" if n in site.angles else "" for n in names)
            )
        console.print(angles)
    _print_doubts(console, report)
    console.print(report.summary(), style="bold", markup=False)


def _print_doubts(console: Any, report: "ValidityReport") -> None:
    from rich.markup import escape

    for doubt in report.doubts():
        console.print(f"{'[bold red]grave doubt[/]' if doubt.grave else '[yellow]doubt[/]'}: {escape(doubt.text)}")


def _short(site: str) -> str:
    return site.removeprefix("resid_post.")
