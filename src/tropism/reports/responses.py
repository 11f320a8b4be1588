"""The responses as the page's data: a record per prompt, every arm's answers side by side, within a budget of size."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tropism.results.text import shorten, visible

BUDGET = 1_900_000
"""Characters that the responses may take in the page, so that a report stays under 3 MB."""
_LIMITS = (6_000, 3_000, 1_500, 700, 300)
"""Longest response shown, in characters; the next limit is tried while the responses are over budget."""


def browser(responses: Sequence[Mapping[str, Any]], arms: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Return everything that the page's script needs; `note` says what had to be left out."""
    # Shorter responses first, because a reader misses an ending less than a whole prompt.
    for limit in _LIMITS:
        data = _collect(responses, arms, limit)
        if len(embed(data)) <= BUDGET:
            return data
    prompts = data["prompts"]
    while len(prompts) > 1 and len(embed(data)) > BUDGET:
        prompts = prompts[: max(1, len(prompts) * 3 // 4)]
        data = {
            **data,
            "prompts": prompts,
            "note": f"The first {len(prompts):,} prompts; responses.jsonl has all of them.",
        }
    return data


def embed(data: Any) -> Markup:
    """Write JSON for the inside of a `<script>` element: nothing in it can close the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _collect(
    responses: Sequence[Mapping[str, Any]], arms: Sequence[tuple[str, str, str]], limit: int
) -> dict[str, Any]:
    place = {(condition, mode): index for index, (condition, mode, _) in enumerate(arms)}
    metrics = list(dict.fromkeys(metric for row in responses for metric in row.get("scores", {})))
    sets = list(dict.fromkeys(str(row["eval_set"]) for row in responses))
    seeds: list[int | None] = sorted({row["seed"] for row in responses if row.get("seed") is not None})
    prompts: dict[tuple[str, str], dict[str, Any]] = {}
    for row in responses:
        arm = place.get((row["condition"], row.get("mode", "full")))
        if arm is None:
            # Its measurements are not in the results, so the page has no arm to show it under.
            continue
        key = (str(row["eval_set"]), str(row["id"]))
        if key not in prompts:
            prompts[key] = _record(row, sets.index(key[0]), limit)
        record = prompts[key]
        response = row.get("response")
        scores = [_score(row.get("scores", {}).get(metric)) for metric in metrics]
        seed = None if row.get("seed") is None else seeds.index(row["seed"])
        record["r"].append([arm, seed, None if response is None else shorten(visible(response), limit), scores])
    note = ""
    if limit != _LIMITS[0]:
        note = f"Responses are cut at {limit:,} characters here; responses.jsonl has them whole."
    return {
        "arms": [visible(label).replace("_", " ") for _, _, label in arms],
        "metrics": [visible(metric) for metric in metrics],
        "sets": [visible(name) for name in sets],
        "seeds": seeds,
        "prompts": list(prompts.values()),
        "note": note,
    }


def _record(row: Mapping[str, Any], eval_set: int, limit: int) -> dict[str, Any]:
    """A prompt without its responses, under the short keys that the page's script reads."""
    messages = []
    for message in row.get("prompt", []):
        messages.append([visible(message.get("role", "")), shorten(visible(message.get("content", "")), limit)])
    target = row.get("target")
    return {
        "i": visible(row["id"]),
        "e": eval_set,
        "p": messages,
        "t": None if target is None else shorten(visible(target), limit),
        "r": [],
    }


def _score(score: Mapping[str, Any] | None) -> float | str | None:
    """Return a number, the reason for having none, or None where the metric does not apply."""
    if score is None:
        return None
    value = score.get("value")
    if isinstance(value, int | float):
        return round(float(value), 4) if math.isfinite(value) else "not a finite number"
    return visible(score.get("unscored") or "unscored")
