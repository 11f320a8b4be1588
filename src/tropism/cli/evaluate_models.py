"""`tropism evaluate MODEL`: a model, adapters and whole models, on any data, by any metrics or a published suite."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tropism.cli.experiments import RUNS_FAILED
from tropism.cli.options import BatchSize, Blocks, Columns, Device, parse_columns

if TYPE_CHECKING:
    from tropism.experiments.evaluation import Evaluation, JudgeChoice

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
OPTIONS = ("--data", "--suite", "--adapter", "--measure", "--directions")
"""The options by which the group knows that a model is meant and no command of it."""


def models(
    model: Annotated[str, typer.Argument(help="The base model: a hub name or a local folder.", show_default=False)],
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="[NAME=]FOLDER or OWNER/NAME[@REVISION] of a PEFT adapter on it. Repeatable."),
    ] = None,
    other: Annotated[
        list[str] | None,
        typer.Option("--model", help="NAME=MODEL of a whole model: fully fine-tuned, or merged. Repeatable."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="SET=SOURCE: a file of rows, a source or a hub dataset. Repeatable."),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure",
            help="NAME=SCORER, or NAME='{scorer: contains, text: yes, on: [SET]}' with options. Repeatable.",
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help="emergent-misalignment, refusal, sorry-bench or over-refusal. Repeatable."),
    ] = None,
    questions: Annotated[
        list[str] | None, typer.Option("--questions", help="[SUITE=]FILE: a suite's question file, as published.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="The judge's model, for suites that have one.")] = None,
    judge_url: Annotated[str | None, typer.Option(help="Its endpoint; OpenAI's by default.")] = None,
    judge_key_env: Annotated[str, typer.Option(help="Environment variable with its key.")] = "OPENAI_API_KEY",
    judge_style: Annotated[
        str | None,
        typer.Option(
            help="Of emergent-misalignment: single_token reads the probabilities of the judge's first token, as published; "
            "free_text the number it writes, where an endpoint gives none."
        ),
    ] = None,
    directions: Annotated[
        list[str] | None,
        typer.Option("--directions", help="[NAME=]FILE: variance along them, projection, gradient cosine. Repeatable."),
    ] = None,
    on: Annotated[
        str | None, typer.Option("--on", help="The set whose chats directions are read on; by default the first.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which split of --data, and which rows of it.")] = "train",
    size: Annotated[int | None, typer.Option("--size", min=1, help="Take so many rows of each set.")] = None,
    columns: Columns = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of a response.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = None,
    batch_size: BatchSize = 16,
    revision: Annotated[str | None, typer.Option(help="A revision of the base model on the hub.")] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    blocks: Blocks = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other key of an experiment file, as in template_kwargs={...}."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep the results here, with report.html and every response.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows of results.csv to this file.")
    ] = None,
) -> None:
    """Evaluate a model, adapters on it and whole models beside it, in one table.

    It is the same code as an experiment whose conditions are there already: --out has the file. Without --out nothing is
    kept but the table and --json. Exits with 3 if something could not be scored.
    """
    import tempfile

    evaluation = _evaluation(
        model, adapter, other, data, measure, directions, on, split, size, columns,
        _suites(suite, questions, size, _judge(judge, judge_url, judge_key_env, judge_style)),
        _settings(max_new_tokens, temperature, batch_size, revision, device, dtype, blocks, set_),
    )  # fmt: skip
    if out is not None:
        _run(evaluation, out, json_file, kept=True)
        return
    with tempfile.TemporaryDirectory(prefix="tropism-evaluate-") as folder:
        _run(evaluation, Path(folder) / "results", json_file, kept=False)


def _run(evaluation: "Evaluation", folder: Path, json_file: Path | None, *, kept: bool) -> None:
    import json
    import shlex
    import sys

    from tropism.atomic import write_text
    from tropism.cli.experiments import watching
    from tropism.cli.quiet import quiet
    from tropism.experiments.evaluation import rows
    from tropism.reports.terminal import print_report
    from tropism.results.folder import load
    from tropism.results.text import visible

    quiet()
    with watching() as progress:
        ended = evaluation.run(folder, progress, shlex.join(["tropism", *sys.argv[1:]]) if kept else "")
    print_report(load(folder))
    if json_file is not None:
        write_text(json_file, json.dumps(rows(ended.results), indent=1) + "\n")
    if kept:
        print(f"\nreport: {folder / 'report.html'}    results: {folder / 'results.csv'}")
    if ended.problems:
        print("could not be scored:", file=sys.stderr)
        for line in ended.problems:
            print(f"  {visible(line)}", file=sys.stderr)
        raise SystemExit(RUNS_FAILED)


def _evaluation(
    model: str,
    adapter: list[str] | None,
    other: list[str] | None,
    data: list[str] | None,
    measure: list[str] | None,
    directions: list[str] | None,
    on: str | None,
    split: str,
    size: int | None,
    columns: list[str] | None,
    suites: tuple[dict[str, Any], dict[str, Any]],
    settings: dict[str, Any],
) -> "Evaluation":
    from tropism.experiments.evaluation import Evaluation

    chosen: dict[str, Any] = {"split": None if split == "train" else split, "size": size}
    chosen["columns"] = parse_columns(columns)
    chosen = {name: value for name, value in chosen.items() if value is not None}
    sets, metrics = suites
    given = {name: {"source": source, **chosen} for name, source in named(data, "--data", "SOURCE").items()}
    return Evaluation(
        model,
        named(adapter, "--adapter", "FOLDER", by_path=True),
        named(other, "--model", "MODEL"),
        {**given, **_new(sets, given, "--data")},
        {**(measured := _measures(measure, list(given))), **_new(metrics, measured, "--measure")},
        named(directions, "--directions", "FILE", by_path=True),
        on,
        settings,
    )


def _new(added: dict[str, Any], given: Sequence[str] | dict[str, Any], option: str) -> dict[str, Any]:
    from tropism.errors import UsageError

    for name in added:
        if name in given:
            raise UsageError(f"{option} {name}=… has a name that the suite uses; choose another")
    return added


def named(given: list[str] | None, option: str, what: str, *, by_path: bool = False) -> dict[str, str]:
    """Return `NAME=VALUE` options as a mapping; with `by_path` a value alone is named by its last part.

    Raises `UsageError` for another form, a name that no key of an experiment file can be, and a name that comes twice.
    """
    from tropism.errors import UsageError

    found: dict[str, str] = {}
    for one in given or ():
        name, equals, value = one.partition("=")
        if not equals and by_path:
            name, value = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(one.partition("@")[0]).stem), one
        if not value or not _NAME.fullmatch(name):
            form = f"[NAME=]{what}" if by_path else f"NAME={what}"
            raise UsageError(
                f"{option} must be {form} with a name that begins with a letter and has letters, digits, _ and -, found {one!r}"
            )
        if name in found:
            raise UsageError(f"{option} has the name {name!r} twice; write NAME={what} to tell them apart")
        found[name] = value
    return found


def _measures(given: list[str] | None, sets: list[str]) -> dict[str, Any]:
    """Metrics on the sets of `--data`, unless their options say which."""
    from tropism.errors import UsageError

    found: dict[str, Any] = {}
    for name, options in parse_measures(given).items():
        if not sets and "on" not in options:
            raise UsageError(f"--measure {name} needs --data SET=SOURCE to be taken on")
        found[name] = {"on": sets, **options}
    return found


def parse_measures(given: list[str] | None) -> dict[str, dict[str, Any]]:
    """Return the options of every `--measure`, the scorer's name among them; raises `UsageError` for another form."""
    from tropism.errors import UsageError
    from tropism.experiments.file.yaml_file import parse_value

    found: dict[str, dict[str, Any]] = {}
    for name, text in named(given, "--measure", "SCORER").items():
        value = parse_value(text, f"--measure {name}")
        options = {"scorer": value} if isinstance(value, str) else value
        if not isinstance(options, dict) or "scorer" not in options:
            raise UsageError(
                f"--measure {name} must be a scorer's name, or {{scorer: NAME, OPTION: VALUE}}, found {text!r}; "
                "'tropism evaluate scorers' lists them"
            )
        found[name] = options
    return found


def _judge(model: str | None, url: str | None, key_env: str, style: str | None) -> "JudgeChoice | None":
    from tropism.errors import UsageError
    from tropism.evals.judges.endpoint import OPENAI
    from tropism.evals.judges.served import served_model
    from tropism.experiments.evaluation import JudgeChoice

    if model is None and url is None:
        if style is not None:
            raise UsageError("--judge-style needs --judge MODEL")
        return None
    if model is None and url is not None:
        model = served_model(url, key_env, option="--judge MODEL")
    if model is None:
        raise UsageError("--judge-url needs --judge MODEL")
    return JudgeChoice(model, url or OPENAI, key_env, style)


def _suites(
    names: list[str] | None, questions: list[str] | None, size: int | None, judge: "JudgeChoice | None"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data sets and metrics of every suite that is asked for."""
    from tropism.errors import UsageError
    from tropism.experiments.evaluation import SUITES, suite

    chosen = list(dict.fromkeys(names or ()))
    files: dict[str, str] = {}
    for one in questions or ():
        name, equals, file = one.partition("=")
        of = name if equals and name in SUITES else chosen[0] if len(chosen) == 1 else None
        if of is None or of not in chosen or of in files:
            raise UsageError(f"--questions must be SUITE=FILE, once for each --suite, found {one!r}")
        files[of] = file if of == name and equals else one
    if judge is not None and not chosen:
        raise UsageError("--judge belongs to --suite; a metric of yours names its own: {scorer: judge, model: …}")
    data: dict[str, Any] = {}
    measure: dict[str, Any] = {}
    for name in chosen:
        sets, metrics = suite(name, Path(files[name]) if name in files else None, judge)
        for metric, options in metrics.items():
            # The same question may be asked of several suites' sets; it is one metric on all of them.
            if metric in measure and {**measure[metric], "on": 0} == {**options, "on": 0}:
                options = {**options, "on": [*measure[metric]["on"], *options["on"]]}
            elif metric in measure:
                metric = f"{metric}_{name.replace('-', '_')}"
            measure[metric] = options
        data |= {one: options if size is None else {**options, "size": size} for one, options in sets.items()}
    return data, measure


def _settings(
    max_new_tokens: int | None,
    temperature: float | None,
    batch_size: int,
    revision: str | None,
    device: str,
    dtype: str,
    blocks: str | None,
    settings: list[str] | None,
) -> dict[str, Any]:
    """What else the experiment file says."""
    from tropism.errors import UsageError
    from tropism.experiments.file.overrides import merge, nested
    from tropism.experiments.file.yaml_file import parse_value

    generate = {"max_new_tokens": max_new_tokens, "temperature": temperature, "batch_size": batch_size}
    found: dict[str, Any] = {"generate": {name: value for name, value in generate.items() if value is not None}}
    given = {"revision": revision, "device": device, "dtype": dtype, "blocks": blocks}
    found |= {name: value for name, value in given.items() if value is not None}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set takes KEY=VALUE, as in generate.top_p=0.9; found {setting!r}")
        found = merge(found, nested(key.strip(), parse_value(value, f"--set {key.strip()}")))
    return found
