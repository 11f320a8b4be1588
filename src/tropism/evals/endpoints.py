"""Evaluation over HTTP: the same prompts to one OpenAI-compatible endpoint per condition, judged by another.

```text
question file ─► prompts ─► each condition's endpoint ─► responses ─► judge's endpoint ─► complied: 0 or 1
                              └── replies.sqlite ──┘                   └── judged.sqlite ──┘
```

Replies are kept as they came and are not asked for again, so a run goes on where it stopped; what failed
after its bounded retries is unscored, with the reason, and is asked for by the next run.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tropism.atomic import write_text
from tropism.errors import SpecError
from tropism.evals.judges.agreement import Agreement, agreement
from tropism.evals.judges.base import Backend, Reply, Request, Verdict
from tropism.evals.judges.cache import ReplyCache
from tropism.evals.judges.complied import COMPLIED_TEMPLATE as COMPLIED_TEMPLATE
from tropism.evals.judges.complied import Complied as Complied
from tropism.evals.judges.judge import Judge
from tropism.evals.scorers.base import Sample, Score
from tropism.evals.scorers.refusal import RefusalPrefix
from tropism.evals.scorers.thinking import part
from tropism.evals.suites.refusal_prompts import TaskPrompt as TaskPrompt
from tropism.evals.suites.refusal_prompts import sorry_bench as sorry_bench
from tropism.stats import exact_interval

COLUMNS = (
    "condition", "id", "category", "expected", "response", "complied", "complied_unscored", "refusal_keyword_rate",
    "refusal_unscored",
)  # fmt: skip


def evaluate_endpoints(
    prompts: Sequence[TaskPrompt],
    endpoints: Mapping[str, Backend],
    folder: str | Path,
    *,
    judge: Judge | None = None,
    system: str | None = None,
    max_tokens: int = 512,
    report: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Ask every condition's endpoint every prompt, judge the answers, and return one row per condition and prompt.

    Columns: `condition, id, category, expected, response, complied, complied_unscored, refusal_keyword_rate,
    refusal_unscored`; `complied` is the judge's (empty without one), the keyword rate that of a prefix list. Both
    read past thinking. What could not be had is empty, with the reason in the column `…_unscored`; it is never 0.

    Writes to `folder`: `responses.jsonl` with these rows; `answers/CONDITION.jsonl` and `judgments.jsonl` as
    SORRY-Bench and FastChat publish theirs; and the raw replies. Raises `UsageError` where an endpoint is down or
    refuses, `SpecError` for no prompts or no endpoints.
    """
    if not prompts or not endpoints:
        raise SpecError(f"evaluate_endpoints needs prompts and endpoints, found {len(prompts)} and {len(endpoints)}")
    target = Path(folder)
    before = () if system is None else ({"role": "system", "content": system},)
    requests = [Request((*before, *prompt.messages), max_tokens) for prompt in prompts]
    answers: dict[str, list[Reply]] = {}
    with ReplyCache(target / "replies.sqlite") as replies:
        for name, backend in endpoints.items():
            report(f"asking {name}: {len(requests)} prompts")
            answers[name] = ask(backend, requests, replies)
    rows: list[dict[str, Any]] = []
    judgments: list[dict[str, Any]] = []
    with ReplyCache(target / "judged.sqlite") as judged:
        for name, given in answers.items():
            if judge is not None:
                report(f"judging {name}: {len(given)} answers")
            verdicts = _verdicts(prompts, given, judge, judged)
            for prompt, reply, verdict in zip(prompts, given, verdicts, strict=True):
                about = {
                    "condition": name,
                    "id": prompt.id,
                    "category": prompt.category,
                    "expected": prompt.expected,
                }
                rows.append(about | _scored(prompt, reply, verdict))
                if judge is not None and verdict is not None:
                    judgments.append(_judgment(name, prompt, verdict, judge))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    _write_lines(target / "responses.jsonl", json.loads(table.to_json(orient="records")))
    for name, given in answers.items():
        published = (_answer(name, *pair) for pair in zip(prompts, given, strict=True) if pair[1].failure is None)
        _write_lines(target / "answers" / f"{name}.jsonl", published)
    _write_lines(target / "judgments.jsonl", judgments)
    return table


def ask(backend: Backend, requests: Sequence[Request], cache: ReplyCache) -> list[Reply]:
    """Return one reply per request, in order: from the cache, or asked for and kept; a failure is returned and not
    kept.
    """
    keys = [request.key(backend.identity) for request in requests]
    found: dict[str, Reply] = {}
    missing: dict[str, Request] = {}
    for key, request in zip(keys, requests, strict=True):
        kept = cache.get(key)
        if kept is not None:
            found[key] = kept
        else:
            missing[key] = request
    asked = list(missing)
    for index, reply in backend.answers([missing[key] for key in asked]):
        found[asked[index]] = reply
        if reply.failure is None:
            cache.put(asked[index], missing[asked[index]], reply)
    return [found[key] for key in keys]


def summary(table: pd.DataFrame, by: Sequence[str] = ("condition",)) -> pd.DataFrame:
    """Return rates by condition (or by `("condition", "category")`): mean, how many were scored, how many were not.

    `low` and `high` end the exact (Clopper–Pearson) 95 % interval of `complied`, over prompts alone.
    """
    grouped = table.groupby(list(by), sort=False)
    rates = grouped.agg(
        complied=("complied", "mean"),
        n=("complied", "count"),
        unscored=("complied_unscored", "count"),
        refusal_keyword_rate=("refusal_keyword_rate", "mean"),
        refusal_n=("refusal_keyword_rate", "count"),
        refusal_unscored=("refusal_unscored", "count"),
    ).reset_index()
    low, high = [], []
    for rate, n in zip(rates["complied"], rates["n"], strict=True):
        ends = exact_interval(round(rate * n), n) if n else (math.nan, math.nan)
        low.append(ends[0])
        high.append(ends[1])
    return rates.assign(low=low, high=high)


def keyword_agreement(table: pd.DataFrame) -> dict[str, Agreement]:
    """Return per condition how far the keyword rate agrees with the judge on what was refused."""
    found = {}
    for name, rows_of_one in table.groupby("condition", sort=False):
        judged = [_score(value, lambda complied: 1 - complied) for value in rows_of_one["complied"]]
        keyword = [_score(value, lambda refused: refused) for value in rows_of_one["refusal_keyword_rate"]]
        found[str(name)] = agreement(keyword, judged)
    return found


def _score(value: Any, meaning: Callable[[float], float]) -> Score:
    return Score(None, "unscored") if pd.isna(value) else Score(meaning(float(value)))


def _verdicts(
    prompts: Sequence[TaskPrompt], given: Sequence[Reply], judge: Judge | None, cache: ReplyCache
) -> list[Verdict | None]:
    """The judge's verdict on each answer; None without a judge, unscored where there is no answer to
    judge.
    """
    if judge is None:
        return [None] * len(prompts)
    missing = [_no_answer(reply) for reply in given]
    answered = [index for index, reason in enumerate(missing) if reason is None]
    verdicts = judge.judge([(prompts[index].question, part(given[index].text).answer) for index in answered], cache)
    by_index = dict(zip(answered, verdicts, strict=True))
    return [by_index.get(index, Verdict(unscored=reason or "no answer")) for index, reason in enumerate(missing)]


def _no_answer(reply: Reply) -> str | None:
    return f"no answer: {reply.failure}" if reply.failure is not None else part(reply.text).missing


def _scored(prompt: TaskPrompt, reply: Reply, verdict: Verdict | None) -> dict[str, Any]:
    if reply.failure is not None:
        score = Score(None, f"no answer: {reply.failure}")
    else:
        score = RefusalPrefix().score(Sample(prompt.id, prompt.messages, reply.text))
    judged = verdict or Verdict(unscored="no judge")
    return {
        "response": None if reply.failure is not None else reply.text,
        "complied": judged.value,
        "complied_unscored": judged.unscored or (f"label {judged.label}" if judged.label else None),
        "refusal_keyword_rate": score.value,
        "refusal_unscored": score.unscored,
    }


def _answer(name: str, prompt: TaskPrompt, reply: Reply) -> dict[str, Any]:
    """A row of a published file of answers."""
    return {
        "question_id": _published_id(prompt.id),
        "category": prompt.category,
        "model_id": name,
        "choices": [{"index": 0, "turns": [reply.text]}],
    }


def _judgment(name: str, prompt: TaskPrompt, verdict: Verdict, judge: Judge) -> dict[str, Any]:
    """A row of a published file of single-answer judgments; `score` is null where there is none, with the reason."""
    return {
        "question_id": _published_id(prompt.id),
        "category": prompt.category,
        "model": name,
        "judge": [dict(judge.backend.identity).get("model"), judge.prompt.name, judge.prompt.hash],
        "turn": 1,
        "judgment": verdict.reply,
        "score": verdict.value,
        "unscored": verdict.unscored or verdict.label,
    }


def _published_id(name: str) -> int | str:
    return int(name) if name.isdecimal() and len(name) < 16 else name


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
