"""`tropism init | validate | run | status`: an experiment from its file to its report."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tropism.experiments.file.experiment import Experiment

File = Annotated[Path, typer.Argument(help="The experiment file.", show_default=False)]
Quick = Annotated[bool, typer.Option("--quick", help="Apply the file's 'quick:' section: fewer seeds, smaller sets.")]
Seeds = Annotated[str | None, typer.Option(help="Seeds instead of the file's: '0,1,2'.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key: train.learning_rate=0.002. Repeatable.", show_default=False),
]
Only = Annotated[str | None, typer.Option(help="Run these conditions alone: 'baseline,caft'.", show_default=False)]
Out = Annotated[
    Path | None,
    typer.Option(help="The results folder; runs/NAME by default (runs/NAME-quick with --quick).", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the `tropism` command."""
    app.command()(init)
    app.command()(validate)
    app.command()(run)
    app.command()(status)


def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("experiment.yaml"),
    force: Annotated[bool, typer.Option(help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented experiment file to begin with."""
    from importlib.resources import files

    from tropism.errors import UsageError

    if path.exists() and not force:
        raise UsageError(f"{path} exists; give another name, or --force to overwrite it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((files("tropism.experiments") / "template.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    print(f"wrote {path}\nnext: tropism validate {path}, then: tropism run {path} --quick")


def validate(file: File, quick: Quick = False, seeds: Seeds = None, set_: Set = None) -> None:
    """Check an experiment file, and say what it will cost, before any model is loaded."""
    from rich.console import Console

    from tropism.experiments import estimate

    experiment = load_experiment(file, quick, seeds, set_)
    Console(highlight=False).print(estimate.describe(experiment), soft_wrap=True)


def run(
    file: File, quick: Quick = False, seeds: Seeds = None, only: Only = None, set_: Set = None, out: Out = None
) -> None:
    """Run what is not finished yet, then print the table and write the report."""
    experiment = load_experiment(file, quick, seeds, set_)
    folder = out or Path("runs") / (experiment.name + ("-quick" if quick else ""))
    from tropism.cli.quiet import quiet

    quiet()
    from tropism.experiments.run import run as run_experiment
    from tropism.reports.terminal import print_report
    from tropism.results.folder import load

    progress = _progress()
    began = time.monotonic()
    with progress:
        run_experiment(
            experiment,
            folder,
            command=_command(file, quick, seeds, only, set_),
            only=[name.strip() for name in only.split(",")] if only else None,
            progress=progress,
        )
    print_report(load(folder))
    print(
        f"\nreport: {folder / 'report.html'}    results: {folder / 'results.csv'}    {_clock(time.monotonic() - began)}"
    )
    if progress.failed:
        print(
            f"{progress.failed} runs failed; the reason stands in their FAILED.json and in the report", file=sys.stderr
        )
        raise SystemExit(1)


def status(folder: Annotated[Path, typer.Argument(help="A results folder.")]) -> None:
    """Say which runs of a folder are done, failed or not finished."""
    from rich.console import Console
    from rich.table import Table

    from tropism.experiments.after import status as state

    table = Table("run", "state", "seconds", box=None, pad_edge=False)
    rows = state.of(folder)
    for name, what, seconds in rows:
        table.add_row(name, what, seconds)
    console = Console(highlight=False)
    console.print(table)
    done = sum(what == "done" for _, what, _ in rows)
    console.print(f"{done} of {len(rows)} runs are done")


def _command(file: Path, quick: bool, seeds: str | None, only: str | None, settings: Sequence[str] | None) -> str:
    """What the report tells its reader to type; without folders of this machine."""
    import shlex

    words = ["tropism", "run", file.name if file.is_absolute() else str(file), *(["--quick"] if quick else [])]
    words += ["--seeds", seeds] if seeds else []
    words += ["--only", only] if only else []
    for setting in settings or ():
        words += ["--set", setting]
    return shlex.join(words)


def load_experiment(file: Path, quick: bool, seeds: str | None, settings: Sequence[str] | None) -> "Experiment":
    """Return the experiment that a file and the options `--quick`, `--seeds` and `--set` describe."""
    from tropism.errors import UsageError
    from tropism.experiments.file.experiment import Experiment
    from tropism.experiments.file.yaml_file import parse_value

    overrides: dict[str, Any] = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set takes KEY=VALUE, as in train.learning_rate=0.002; found {setting!r}")
        overrides[key.strip()] = parse_value(value, f"--set {key.strip()}")
    if seeds is not None:
        parts = [part.strip() for part in seeds.split(",")]
        if not all(part.isdigit() for part in parts):
            raise UsageError(f"--seeds takes numbers separated by commas, found {seeds!r}")
        overrides["seeds"] = [int(part) for part in parts]
    return Experiment.load(file, quick=quick, overrides=overrides)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _progress() -> Any:
    from tropism.cli.watching import Watching

    return Watching()
