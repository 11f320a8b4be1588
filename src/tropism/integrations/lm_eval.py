"""Every arm of an experiment on tasks of the LM Evaluation Harness, as rows of one table."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tropism.errors import UsageError
from tropism.experiments.after.arms import Arm, arms_of
from tropism.optional import require

COLUMNS = ("condition", "seed", "mode", "eval_set", "metric", "value", "standard_error", "n", "higher_is_better")
"""Columns of the table; a task is an `eval_set`, as in `results.csv`."""
FILE = "lm_eval.csv"

Report = Callable[[str], None]


def evaluate_lm_eval(
    folder: str | Path,
    tasks: Sequence[str],
    *,
    conditions: Sequence[str] = (),
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    chat_template: bool = False,
    include: str | Path | None = None,
    report: Report = lambda _: None,
) -> pd.DataFrame:
    """Ask every finished run, in every mode, and the untrained model the tasks; a row per arm, task and metric.

    Each arm is the model that Tropism's own evaluation generates with, its adapter merged. `standard_error` is the
    harness's own, over documents.

    Args:
        folder: a results folder.
        tasks: names of tasks or groups of the harness, or of the YAML files in `include`.
        conditions: these alone, `base` for the untrained model; all by default.
        num_fewshot: examples before each question; the task's own number by default.
        limit: the first so many documents of each task.
        batch_size: documents at a time.
        chat_template: ask through the model's chat template.
        include: a folder with task files of your own.

    Raises:
        MissingExtra: without the extra `lm-eval`.
        UsageError: no task, a task that the harness does not know, a condition that is not finished.
    """
    require("lm_eval", extra="lm-eval", purpose="evaluating on tasks of the LM Evaluation Harness")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    if not tasks:
        raise UsageError("--tasks must name at least one task, found none")
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise UsageError(f"--tasks: the harness has no task {', '.join(unknown)}; `lm-eval ls tasks` lists them")
    arms = _chosen(list(arms_of(folder)), conditions)
    rows: list[dict[str, Any]] = []
    for index, arm in enumerate(arms):
        report(f"{arm.name} ({index + 1} of {len(arms)})")
        found = _run(arm, list(tasks), manager, num_fewshot, limit, batch_size, chat_template)
        rows += rows_of(arm, found)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def rows_of(arm: Arm, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The harness's results of one arm as rows; `metric` is its name, with the filter where there is one."""
    rows = []
    for task, values in found["results"].items():
        better = found.get("higher_is_better", {}).get(task) or {}
        n = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in values.items():
            name, comma, chosen = key.partition(",")
            if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{name}_stderr,{chosen}")
            rows.append(
                {
                    "condition": arm.key.condition, "seed": arm.key.seed, "mode": arm.mode, "eval_set": task,
                    "metric": name if chosen == "none" else f"{name} ({chosen})", "value": float(value),
                    "standard_error": float(error) if isinstance(error, int | float) else None, "n": n,
                    "higher_is_better": better.get(name),
                }
            )  # fmt: skip
    return rows


def _chosen(arms: list[Arm], conditions: Sequence[str]) -> list[Arm]:
    there = list(dict.fromkeys(arm.key.condition for arm in arms))
    unknown = [name for name in conditions if name not in there]
    if unknown:
        raise UsageError(
            f"--conditions: no finished run of {', '.join(map(repr, unknown))}; finished are {', '.join(there)}"
        )
    return [arm for arm in arms if not conditions or arm.key.condition in conditions]


def _run(
    arm: Arm,
    tasks: list[str],
    manager: Any,
    num_fewshot: int | None,
    limit: int | None,
    batch_size: int,
    chat_template: bool,
) -> Mapping[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = arm.load()
    found: Mapping[str, Any] = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device)),
        tasks=tasks,
        task_manager=manager,
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=chat_template,
        log_samples=False,
        bootstrap_iters=1000,
    )
    return found
