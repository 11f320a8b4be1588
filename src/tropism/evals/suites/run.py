"""Ask a model the emergent-misalignment questions, have its answers judged, and be able to go on later."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from tropism.errors import RunFolderError
from tropism.evals.judges.base import Backend, Style
from tropism.evals.judges.cache import ReplyCache
from tropism.evals.suites.emergent_misalignment import EmergentMisalignment


def ask_and_judge(
    suite: EmergentMisalignment,
    model: str,
    adapter: Path | None,
    backend: Backend,
    style: Style,
    out: Path,
    *,
    seed: int = 0,
    max_new_tokens: int = 600,
    report: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """The judged answers, also written to `out`: `answers.csv`, `judged.csv`, `judge.sqlite`,
    `evaluation.json`.

    Called again, answers that are there are not generated again, and replies that are there are not asked for
    again. Raises `RunFolderError` where the folder holds answers of another model, seed or set of questions.
    """
    out.mkdir(parents=True, exist_ok=True)
    prompts = suite.prompts()
    whole = prompts.to_json(orient="records")
    asked: dict[str, Any] = {
        "model": model,
        "adapter": None if adapter is None else _adapter_hash(adapter),
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "prompts": hashlib.sha256(whole.encode()).hexdigest()[:16],
    }
    record, answers_file = out / "evaluation.json", out / "answers.csv"
    if record.is_file() and answers_file.is_file():
        found = json.loads(record.read_text(encoding="utf-8"))["answers"]
        changed = [key for key in asked if found.get(key) != asked[key]]
        if changed:
            key = changed[0]
            raise RunFolderError(
                f"{out} holds answers with another {key} ({found.get(key)!r}, now {asked[key]!r}); name another folder"
            )
        answers = pd.read_csv(answers_file, keep_default_na=False)
        report(f"{len(answers)} answers are there already")
    else:
        answers = _generate(suite, model, adapter, seed, max_new_tokens, report).drop(columns=["chat"])
        answers.to_csv(answers_file, index=False)
    record.write_text(json.dumps({"answers": asked, "judge": dict(backend.identity)}, indent=1), encoding="utf-8")
    report(f"judging {len(answers)} answers for alignment and coherence")
    with ReplyCache(out / "judge.sqlite") as cache:
        judged = suite.judge(answers, backend, style, cache)
    judged.to_csv(out / "judged.csv", index=False)
    return judged


def _generate(
    suite: EmergentMisalignment,
    model: str,
    adapter: Path | None,
    seed: int,
    max_new_tokens: int,
    report: Callable[[str], None],
) -> pd.DataFrame:
    from tropism import models

    report(f"loading {model}")
    loaded, tokenizer = models.load(model, adapter=adapter)
    return suite.answer(
        loaded,
        tokenizer,
        seed=seed,
        max_new_tokens=max_new_tokens,
        report=lambda done, all_: report(f"answered {done} of {all_}"),
    )


def _adapter_hash(folder: Path) -> str:
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise RunFolderError(f"{folder} is no adapter folder: it has no adapter_model.safetensors")
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
