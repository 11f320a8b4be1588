"""The responses as the page's data: a record per prompt, every arm's answers side by side, within a budget of size."""

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tropism.results.text import shorten, visible

PLAIN = 400_000
"""Characters up to which the responses are in the page as they are; more are compressed."""
BUDGET = 3_400_000
"""Characters that the compressed responses may take in the page, so that a report stays under 5 MB."""
_LIMITS = (6_000, 3_000, 1_500, 700, 300)
"""Longest response shown, in characters; the next limit is tried while the responses are over budget."""


@dataclass(frozen=True)
class Data:
    """The page's data inside its `<script>` element: JSON, or JSON compressed (`deflate`, RFC 1950) in base64."""

    text: Markup
    packed: bool


def browser(responses: Sequence[Mapping[str, Any]], arms: Sequence[tuple[str, str, str]]) -> Data:
    """Return everything that the page's script needs; its `note` says what had to be left out."""
    whole = _collect(responses, arms, _LIMITS[0])
    longest = max((_longest(prompt) for prompt in whole["prompts"]), default=0)
    plain = _embedded(whole) if len(responses) <= PLAIN // 50 else None
    if plain is not None and len(plain) <= PLAIN:
        return Data(plain, False)
    # Shorter responses first, because a reader misses an ending less than a whole prompt.
    data = whole
    for limit in (_LIMITS[0], *(limit for limit in _LIMITS[1:] if limit < longest)):
        data = whole if limit == _LIMITS[0] else _collect(responses, arms, limit)
        text, fitted = _packed(data)
        if fitted == len(data["prompts"]):
            return Data(text, True)
    shown = {**data, "prompts": data["prompts"][: max(1, fitted)]}
    left = f"The first {len(shown['prompts']):,} of {len(data['prompts']):,} prompts; responses.jsonl has all of them."
    shown["note"] = f"{data['note']} {left}".lstrip()
    return Data(_packed(shown, bounded=False)[0], True)


def _longest(prompt: Mapping[str, Any]) -> int:
    """The length of the longest text of a prompt and its responses."""
    return max([len(text) for _, text in prompt["p"]] + [len(one[2] or "") for one in prompt["r"]], default=0)


def _embedded(data: Any) -> Markup:
    """Write JSON for the inside of a `<script>` element: nothing in it can close the element or open a comment."""
    return Markup(_json(data).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _packed(data: Mapping[str, Any], bounded: bool = True) -> tuple[Markup, int]:
    """Compress the data, prompt by prompt; `bounded` stops over budget. Return the text and how many prompts are in it."""
    squeeze = zlib.compressobj(6)
    parts, size = [squeeze.compress(b'{"prompts":[')], 0
    for index, prompt in enumerate(data["prompts"]):
        parts.append(squeeze.compress(("," * bool(index) + _json(prompt)).encode()))
        size += len(parts[-1])
        if bounded and size * 4 // 3 > BUDGET:
            return Markup(""), index
    rest = {name: value for name, value in data.items() if name != "prompts"}
    parts += [squeeze.compress(f"],{_json(rest)[1:]}".encode()), squeeze.flush()]
    text, count = base64.b64encode(b"".join(parts)).decode(), len(data["prompts"])
    # What is squeezed comes out in blocks, so that the last of them may still go over.
    if bounded and len(text) > BUDGET:
        return Markup(""), min(count - 1, count * BUDGET // len(text))
    return Markup(text), count


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


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
        given = row.get("scores", {})
        scores = [_score(given.get(metric)) for metric in metrics]
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
    # A tuple, because a union of types is slow to ask, and this is asked of every score.
    if isinstance(value, (int, float)):
        return round(float(value), 4) if math.isfinite(value) else "not a finite number"
    return visible(score.get("unscored") or "unscored")
