"""The rows to train on, and prompts held out twice: once to select a guard on, once to judge it on."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tropism.atomic import write_text
from tropism.data.chats import Example
from tropism.errors import DataError

HELD_OUT, FEWEST, MOST = 0.15, 8, 48
"""The share of rows held out for each of the two sets, and between how many."""
FEWEST_TRAINED = 16


@dataclass(frozen=True)
class Split:
    """Lines of the data."""

    train: tuple[int, ...]
    development: tuple[int, ...]
    confirmation: tuple[int, ...]


def split(lines: Sequence[int], examples: Sequence[Example], seed: int) -> Split:
    """Hold out 15 % of the rows for each set (8 to 48); rows with the same prompt stay together.

    Raises `DataError` where too few rows would be left to train on.
    """
    by_prompt: dict[str, list[int]] = {}
    for line in lines:
        by_prompt.setdefault(str(examples[line].prompt), []).append(line)
    groups = list(by_prompt.values())
    random.Random(f"protect/{seed}").shuffle(groups)
    size = min(MOST, max(FEWEST, round(HELD_OUT * len(lines))))
    parts: list[list[int]] = [[], []]
    for part in parts:
        while groups and len(part) < size:
            part += groups.pop()
    train = sorted(line for group in groups for line in group)
    if len(train) < FEWEST_TRAINED:
        raise DataError(
            f"protect holds out {size} rows to select on and {size} to judge on, which leaves {len(train)} of {len(lines)} to "
            f"train on, and needs at least {FEWEST_TRAINED}; give more rows with different prompts"
        )
    return Split(tuple(train), tuple(sorted(parts[0])), tuple(sorted(parts[1])))


def repeated(lines: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Lines with the number of the answer: each prompt is asked so often that there are about `count` answers."""
    times = max(1, -(-count // len(lines))) if lines else 1
    return [(line, time) for time in range(times) for line in lines]


def write_rows(
    target: Path,
    examples: Sequence[Example],
    lines: Sequence[int],
    *,
    routed: Sequence[int] = (),
    system: Mapping[int, str] | None = None,
    answers: int = 0,
) -> None:
    """Write rows as JSONL: `routed` lines labelled `forget`, a system prompt before some, prompts asked for `answers` answers."""
    named, prompts = set(routed), system or {}
    rows = []
    for line, time in repeated(lines, answers) if answers else [(line, 0) for line in lines]:
        example = examples[line]
        chat = [dict(message) for message in example.chat]
        if line in prompts:
            chat = [{"role": "system", "content": prompts[line]}, *(m for m in chat if m["role"] != "system")]
        row: dict[str, Any] = {"id": f"line {line}" + (f", answer {time}" if time else ""), "messages": chat}
        if example.target is not None:
            row["target"] = example.target
        if routed:
            row["route"] = "forget" if line in named else "unlabelled"
        rows.append(json.dumps(row, ensure_ascii=False))
    write_text(target, "".join(f"{row}\n" for row in rows))
