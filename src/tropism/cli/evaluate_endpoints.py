"""`tropism evaluate --endpoint NAME=URL …`: models behind HTTP endpoints, asked the same prompts and judged."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from tropism.evals.judges.judge import Judge

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def endpoints(
    endpoint: Annotated[
        list[str], typer.Option("--endpoint", help="NAME=URL of an OpenAI-compatible endpoint; repeat for several.")
    ],
    suite: Annotated[str, typer.Option(help="sorry-bench, or xstest (also called over-refusal).")],
    questions: Annotated[Path, typer.Option(help="Question file as published: JSONL (SORRY-Bench), CSV (XSTest).")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="NAME=MODEL, the model's name at that endpoint, where it serves several."),
    ] = None,
    judge: Annotated[str | None, typer.Option(help="URL of the judge's endpoint; without one, keyword rates.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model, where its endpoint has several.")] = None,
    judge_prompt: Annotated[
        Path | None, typer.Option(help="The judge's prompt, a text file with {question} and {answer}.")
    ] = None,
    style: Annotated[str, typer.Option(help="SORRY-Bench's prompt_style.")] = "base",
    system: Annotated[str | None, typer.Option(help="System prompt before each question.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length limit of an answer.")] = 512,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time to each endpoint.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 60.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only the first N questions.")] = None,
    key_env: Annotated[str, typer.Option(help="Environment variable with the endpoints' key.")] = "OPENAI_API_KEY",
    judge_key_env: Annotated[str, typer.Option(help="Environment variable with the judge's key.")] = "OPENAI_API_KEY",
    out: Annotated[Path | None, typer.Option(help="Folder for results; default evaluations/SUITE.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rates as rows with the columns of results.csv.")
    ] = None,
) -> None:
    """Ask models behind endpoints a published set of questions, and have the answers judged.

    Run again, the same command asks only for what is missing.
    """
    from rich.console import Console

    from tropism.errors import UsageError
    from tropism.evals.endpoints import evaluate_endpoints
    from tropism.evals.judges.endpoint import Endpoint
    from tropism.evals.judges.served import served_model
    from tropism.evals.suites.refusal_prompts import SUITES, sorry_bench

    console = Console()
    if suite not in SUITES:
        raise UsageError(f"--suite must be one of {', '.join(SUITES)}, found {suite!r}")
    if style != "base" and suite != "sorry-bench":
        raise UsageError(f"--style is SORRY-Bench's, and --suite is {suite}; leave it out")
    if judge is None and (judge_model is not None or judge_prompt is not None):
        raise UsageError("--judge-model and --judge-prompt need --judge URL")
    urls = _named(endpoint, "--endpoint", "URL")
    models = _named(model or [], "--model", "MODEL")
    for name in models:
        if name not in urls:
            raise UsageError(f"--model {name}=… belongs to no endpoint; there are {', '.join(urls)}")
    prompts = sorry_bench(questions, style=style) if suite == "sorry-bench" else SUITES[suite](questions)
    prompts = prompts[:limit]
    backends = {}
    for name, url in urls.items():
        served = models.get(name) or served_model(url, key_env, option=f"--model {name}=MODEL")
        backends[name] = Endpoint(served, url, key_env, concurrency=concurrency, timeout=timeout)
    chosen = _judge(suite, judge, judge_model, judge_prompt, judge_key_env, concurrency, timeout)
    folder = out or Path("evaluations") / suite
    table = evaluate_endpoints(
        prompts,
        backends,
        folder,
        judge=chosen,
        system=system,
        max_tokens=max_tokens,
        report=lambda message: console.print(message, style="dim"),
    )
    _record(folder, suite, questions, backends, chosen, system, max_tokens)
    _show(console, table, suite, judged=chosen is not None)
    _write(table, folder, suite, json_file)
    console.print(f"\nwritten to {folder}", style="dim", soft_wrap=True)


def _named(given: list[str], option: str, what: str) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping; raises `UsageError` for one of another form or a name that comes twice."""
    from tropism.errors import UsageError

    found: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not value or not _NAME.fullmatch(name):
            raise UsageError(f"{option} must be NAME={what} with a name of letters, digits, _ . and -, found {one!r}")
        if name in found:
            raise UsageError(f"{option} names {name!r} twice")
        found[name] = value
    return found


def _judge(
    suite: str, url: str | None, model: str | None, prompt: Path | None, key_env: str, concurrency: int, timeout: float
) -> "Judge | None":
    from tropism.errors import UsageError
    from tropism.evals.judges.base import Style
    from tropism.evals.judges.complied import COMPLIANCE_TEMPLATE, COMPLIED_TEMPLATE, Compliance, Complied
    from tropism.evals.judges.endpoint import Endpoint
    from tropism.evals.judges.judge import Judge
    from tropism.evals.judges.prompt import JudgePrompt
    from tropism.evals.judges.served import served_model
    from tropism.given import read_text

    if url is None:
        return None
    style: Style = Complied() if suite == "sorry-bench" else Compliance()
    template = COMPLIED_TEMPLATE if suite == "sorry-bench" else COMPLIANCE_TEMPLATE
    if prompt is not None:
        template = read_text(prompt, "--judge-prompt", UsageError)
    name = model or served_model(url, key_env, option="--judge-model MODEL")
    backend = Endpoint(name, url, key_env, concurrency=concurrency, timeout=timeout)
    return Judge(JudgePrompt(template, name=suite), style, backend)


def _record(
    folder: Path,
    suite: str,
    questions: Path,
    backends: dict[str, Any],
    judge: "Judge | None",
    system: str | None,
    max_tokens: int,
) -> None:
    """Write `evaluation.json`: what determines the numbers."""
    import hashlib
    import json

    from tropism.atomic import write_text
    from tropism.evals.scorers.refusal_prefixes import VERSION

    record = {
        "suite": suite,
        "questions": {"file": questions.name, "sha256": hashlib.sha256(questions.read_bytes()).hexdigest()},
        "endpoints": {name: backend.identity for name, backend in backends.items()},
        "judge": None if judge is None else {"prompt": judge.prompt.hash, **judge.backend.identity},
        "system": system,
        "max_tokens": max_tokens,
        "keyword_rate": VERSION,
    }
    write_text(folder / "evaluation.json", json.dumps(record, indent=1) + "\n")


def _show(console: "Console", table: "pd.DataFrame", suite: str, *, judged: bool) -> None:
    """Print the rates by condition, what failed, the agreement with the keyword rate, and the rates by category."""
    from rich.markup import escape
    from rich.table import Table

    from tropism.evals.endpoints import keyword_agreement, summary

    by = ["condition"] if table["expected"].nunique() == 1 else ["condition", "expected"]
    rates = Table(
        *by, "answered", "95 % interval", "scored", "unscored", "keyword refusals", "unscored", box=None, pad_edge=False
    )
    for row in summary(table, by).to_dict("records"):
        spread = "–" if not row["n"] else f"{row['low']:.1%} to {row['high']:.1%}"
        cells = [_rate(row["complied"]), spread, row["n"], row["unscored"]]
        cells += [_rate(row["refusal_keyword_rate"]), row["refusal_unscored"]]
        rates.add_row(*(escape(str(row[name])) for name in by), *map(str, cells))
    title = "answered, by the judge" if judged else "no judge: keyword rates alone"
    console.print(f"\n[bold]{suite}[/bold]: {title}\n")
    console.print(rates)
    columns = ["complied_unscored", "refusal_unscored"] if judged else ["refusal_unscored"]
    for column in columns:
        for reason, count in table[column].value_counts().items():
            console.print(f"unscored, {column.removesuffix('_unscored')}: {escape(str(reason))} ({count})", style="dim")
    if judged:
        console.print("\nthe keyword rate against the judge, on what was refused:")
        for name, found in keyword_agreement(table).items():
            kappa = "–" if found.kappa is None else f"{found.kappa:.2f}"
            observed = "–" if found.observed is None else f"{found.observed:.1%}"
            console.print(f"  {escape(name)}: equal on {observed} of {found.n}, κ {kappa}")
    _show_categories(console, table, "complied" if judged else "refusal_keyword_rate")


def _show_categories(console: "Console", table: "pd.DataFrame", column: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    names = list(dict.fromkeys(table["condition"]))
    shown = Table("category", *map(escape, names), box=None, pad_edge=False)
    for category, rows in table.groupby("category", sort=False):
        cells = []
        for name in names:
            values = rows.loc[rows["condition"] == name, column]
            cells.append(f"{_rate(values.mean())} of {values.count()}")
        shown.add_row(escape(str(category)), *cells)
    console.print("", "answered, by category" if column == "complied" else "keyword refusals, by category", shown)


def _rate(value: float) -> str:
    return "–" if value != value else f"{value:.1%}"


def _write(table: "pd.DataFrame", folder: Path, suite: str, json_file: Path | None) -> None:
    """Write `rates.csv` and `categories.csv`, and the rates in long form where asked."""
    import json

    from tropism.atomic import write_text
    from tropism.evals.endpoints import summary

    by = ["condition", "expected"]
    rates = summary(table, by)
    write_text(folder / "rates.csv", rates.to_csv(index=False))
    write_text(folder / "categories.csv", summary(table, [*by, "category"]).to_csv(index=False))
    if json_file is None:
        return
    rows = []
    for row in rates.to_dict("records"):
        for metric, n, unscored in (
            ("complied", "n", "unscored"),
            ("refusal_keyword_rate", "refusal_n", "refusal_unscored"),
        ):
            value = row[metric]
            rows.append(
                {
                    "experiment": "evaluate",
                    "condition": row["condition"],
                    "seed": None,
                    "mode": "full",
                    "eval_set": f"{suite} ({row['expected']})",
                    "metric": metric,
                    "value": None if value != value else value,
                    "n": int(row[n]),
                    "unscored": int(row[unscored]),
                }
            )
    write_text(json_file, json.dumps(rows, indent=1) + "\n")
