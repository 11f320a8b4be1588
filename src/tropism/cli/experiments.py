"""`tropism init | validate | run | status | schema`: an experiment from its file to its report."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from tropism.cli.options import AsJson

if TYPE_CHECKING:
    from tropism.experiments.file.experiment import Experiment

RUNS_FAILED = 3
"""Exit code of `run` and `status` where runs failed, or a metric of a run could not be scored."""

File = Annotated[Path, typer.Argument(help="The experiment file.", show_default=False)]
Quick = Annotated[bool, typer.Option("--quick", help="Apply the file's 'quick:' section: fewer seeds, smaller sets.")]
Seeds = Annotated[str | None, typer.Option(help="Use these seeds instead: '0,1,2'.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key, as in train.learning_rate=0.002; repeatable.", show_default=False),
]
Only = Annotated[str | None, typer.Option(help="Run only these conditions: 'baseline,caft'.", show_default=False)]
Out = Annotated[
    str | None,
    typer.Option(
        help="Results folder, or its URL in an object store (s3://BUCKET/NAME); by default runs/NAME, with --quick "
        "runs/NAME-quick.",
        show_default=False,
    ),
]


Processes = Annotated[
    int | None,
    typer.Option(
        help="Train and evaluate each run in this many processes, a GPU each (sets train.processes).",
        show_default=False,
    ),
]
ExecutorName = Annotated[
    str, typer.Option(help="Who does the runs: local (this process), pool, ray or slurm.", show_default=True)
]
Workers = Annotated[int | None, typer.Option(help="With pool or slurm: how many workers.", show_default=False)]
Resource = Annotated[
    list[str] | None,
    typer.Option(
        help="With ray or slurm: what a run gets, as num_gpus=0.25 or slurm_partition=gpu; repeatable.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the `tropism` command."""
    app.command()(init)
    app.command()(validate)
    app.command()(run)
    app.command()(status)
    app.command()(schema)


def init(
    what: Annotated[
        str,
        typer.Argument(
            help="Where to write the file; or a study to begin: concept-ablation, routing, refusal, inoculation."
        ),
    ] = "experiment.yaml",
    model: Annotated[str | None, typer.Option(help="The study's base model: a hub name or a folder.")] = None,
    organism: Annotated[
        str | None, typer.Option(help="The adapter with the trait, or that refuses: a folder or OWNER/NAME.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="What is trained on: a file of rows or another source.")] = None,
    questions: Annotated[str | None, typer.Option(help="What is asked in the end, likewise.")] = None,
    harmless: Annotated[str | None, typer.Option(help="Of a refusal study: what should be answered.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The inoculation prompt.")] = None,
    suppress: Annotated[str | None, typer.Option(help="A prompt for the opposite, for the direction.")] = None,
    placebo: Annotated[str | None, typer.Option(help="The placebo prompt.")] = None,
    trait: Annotated[str | None, typer.Option(help="The trait's scorer, or '{scorer: contains, text: yes}'.")] = None,
    judge: Annotated[str | None, typer.Option(help="The judge's model.")] = None,
    judge_url: Annotated[str | None, typer.Option(help="The judge's endpoint; OpenAI's by default.")] = None,
    sae: Annotated[Path | None, typer.Option(help="The folder of an SAE of the model.")] = None,
    labelled: Annotated[bool, typer.Option("--labelled", help="Of routing: the rows carry a column route.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Write the small form: one seed, few steps.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where a study's file goes; by default STUDY.yaml.")] = None,
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented experiment file to start from, or a published study's in full.

    A study asks only what it cannot know: tropism init concept-ablation --model M --organism A --data D --questions Q.
    """
    from importlib.resources import files

    from tropism.atomic import write_text
    from tropism.errors import UsageError
    from tropism.experiments.begin import STUDIES, Given, study_file
    from tropism.experiments.file.schema import URL

    given = Given(
        model, organism, data, questions, harmless, prompt, suppress, placebo, trait, judge, judge_url,
        None if sae is None else str(sae), labelled, quick,
    )  # fmt: skip
    study = what in STUDIES
    if not study and (given.named() or out is not None):
        option = f"--{given.named()[0].replace('_', '-')}" if given.named() else "--out"
        raise UsageError(f"{option} goes with a study ({', '.join(STUDIES)}), found {what!r}")
    path = (out or Path(f"{what.replace('-', '_')}.yaml")) if study else Path(what)
    if path.exists() and not force:
        raise UsageError(f"{path} exists; give another name, or --force to overwrite it")
    if study:
        text = study_file(what, given, str(path))
    else:
        template = (files("tropism.experiments") / "template.yaml").read_text(encoding="utf-8")
        text = f"# yaml-language-server: $schema={URL}\n{template}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    small = "" if quick else " --quick"
    print(f"wrote {path}\nnext: tropism validate {path}, then: tropism run {path}{small}")


def validate(
    file: File,
    quick: Quick = False,
    seeds: Seeds = None,
    set_: Set = None,
    processes: Processes = None,
    executor: ExecutorName = "local",
    workers: Workers = None,
    resource: Resource = None,
    as_json: AsJson = False,
) -> None:
    """Check an experiment file and its data, and estimate its cost, without loading model weights.

    With the options of 'tropism run' that say who does the runs, also whether these fit side by side.
    Exits with 0 if `tropism run` would start, with 2 and the reason if not.
    """
    from rich.console import Console

    from tropism.errors import UsageError
    from tropism.experiments import estimate

    try:
        experiment = load_experiment(file, quick, seeds, [*(set_ or ()), *_processes(processes)])
        found = estimate.estimate(experiment, _executor(executor, workers, None, resource, to_run=False))
    except UsageError as error:
        if as_json:
            print(json.dumps({"valid": False, "error": str(error)}))
        raise
    if as_json:
        print(json.dumps({"valid": True, **found.as_dict()}))
        return
    Console(highlight=False).print("\n".join(found.lines()), soft_wrap=True, markup=False)


def run(
    file: File,
    quick: Quick = False,
    seeds: Seeds = None,
    only: Only = None,
    set_: Set = None,
    out: Out = None,
    until: Annotated[
        Literal["decided"] | None,
        typer.Option(help="Add seeds until every guard's differences are decided, with intervals made for it."),
    ] = None,
    max_seeds: Annotated[int, typer.Option(help="With --until: the most seeds.")] = 8,
    processes: Processes = None,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Annotated[
        str | None, typer.Option(help="With ray: the cluster's address; by default this machine.", show_default=False)
    ] = None,
    resource: Resource = None,
) -> None:
    """Run what is not finished yet, then print the results and write the report.

    Exits with 3 if a run failed, or if one of its metrics could not be scored; the others are kept.
    """
    set_ = [*(set_ or ()), *_processes(processes)]
    experiment = load_experiment(file, quick, seeds, set_)
    from tropism.cli.quiet import quiet

    quiet()
    who = _executor(executor, workers, address, resource)  # a pool begins to import
    from tropism.experiments.mirror import local_of
    from tropism.experiments.run import run_and_tell
    from tropism.experiments.until import run_until_decided
    from tropism.reports.terminal import print_report
    from tropism.results.folder import load
    from tropism.results.text import visible

    where = out or str(Path("runs") / (experiment.name + ("-quick" if quick else "")))
    folder = local_of(where)
    progress = watching()
    began = time.monotonic()
    with progress:
        chosen: dict[str, Any] = {
            "only": [name.strip() for name in only.split(",")] if only else None,
            "command": _command(file, quick, seeds, only, set_),
            "progress": progress,
            "executor": who,
        }
        if until is None:
            ended = run_and_tell(experiment, folder, **chosen)
        else:
            chosen["command"] += f" --until decided --max-seeds {max_seeds}"
            ended = run_until_decided(experiment, folder, max_seeds=max_seeds, **chosen)
    print_report(load(folder))
    print(f"\nreport: {where}/report.html    results: {where}/results.csv    {_clock(time.monotonic() - began)}")
    if ended.problems:
        print("failed, or could not be scored (also listed in the report):", file=sys.stderr)
        for line in ended.problems:
            print(f"  {visible(line)}", file=sys.stderr)
        raise SystemExit(RUNS_FAILED)


def status(
    folder: Annotated[str, typer.Argument(help="A results folder, or its URL.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show which runs of a results folder are done, failed or unfinished.

    Exits with 3 if a run failed.
    """
    from rich.console import Console
    from rich.table import Table

    from tropism.experiments.after import status as state
    from tropism.experiments.mirror import local_of

    rows = state.of(local_of(folder, reading=True))
    done = sum(what == "done" for _, what, _ in rows)
    failed = sum(what.startswith("failed") for _, what, _ in rows)
    if as_json:
        runs = [
            {"run": name, "state": what, "seconds": float(seconds) if seconds else None} for name, what, seconds in rows
        ]
        print(json.dumps({"runs": runs, "done": done, "failed": failed, "of": len(rows)}))
    else:
        table = Table("run", "state", "seconds", box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console = Console(highlight=False)
        console.print(table)
        console.print(f"{done} of {len(rows)} runs are done")
    if failed:
        raise SystemExit(RUNS_FAILED)


def schema() -> None:
    """Print the JSON Schema of experiment files, for editors and other programs."""
    from tropism.experiments.file.schema import experiment_schema

    print(json.dumps(experiment_schema(), indent=1))


def _processes(count: int | None) -> list[str]:
    """What `--processes` sets."""
    return [] if count is None else [f"train.processes={count}"]


def _executor(
    name: str, workers: int | None, address: str | None, resources: Sequence[str] | None, *, to_run: bool = True
) -> Any:
    """Return who does the runs, as the options say; None for this process."""
    from tropism.errors import UsageError
    from tropism.experiments.executors import choose

    names = get_args(choose.Name)
    if name not in names:
        raise UsageError(f"--executor must be one of {', '.join(names)}, found {name!r}")
    return choose.executor(
        cast(choose.Name, name), workers, address, choose.read_resources(resources or ()), to_run=to_run
    )


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


def watching() -> Any:
    from tropism.cli.verbosity import QUIET, level
    from tropism.cli.watching import Watching

    return Watching(silent=level() == QUIET)
