"""What a forecast leaves behind: `forecast.json`, `rows.parquet`, and the data without (or with a label on) the rows to blame."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from tropism.atomic import replacing, write_text
from tropism.data.chats import Example
from tropism.errors import UsageError
from tropism.forecasting.evidence import as_dict
from tropism.forecasting.found import Forecast, TraitForecast

FORMAT = "tropism.forecasting/1"
_DROP = re.compile(r"top\s+(\d+(?:\.\d+)?)\s*%\s+of\s+([A-Za-z][\w-]*)")


def write(found: Forecast, folder: Path, *, data: str) -> None:
    """Write `forecast.json` and `rows.parquet` into a folder, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = found.blame()
    with replacing(folder / "rows.parquet") as path:
        rows.astype({"row": "int64", "trait": "str", "score": "float64"}).to_parquet(path, index=False)
    write_text(folder / "forecast.json", json.dumps(as_json(found, data), indent=1, allow_nan=False))


def as_json(found: Forecast, data: str) -> dict[str, Any]:
    """The forecast as plain JSON; what could not be measured is null."""
    return {
        "format": FORMAT,
        "model": found.model,
        "data": Path(data).name,
        "rows": found.rows,
        "rows_with_a_response": found.sample.rows,
        "rows_measured": len(found.sample.lines),
        "own_answers": len(found.sample.own),
        "tiers": list(found.tiers),
        "planned_steps": found.planned_steps,
        "traits": [_trait(one) for one in found.traits],
        "open": [{"share": round(one.share, 4), "rows": list(one.lines)} for one in found.open_shifts],
    }


def _trait(one: TraitForecast) -> dict[str, Any]:
    dry = one.dry
    return {
        "name": one.trait.name,
        "description": one.trait.description,
        "verdict": str(one.outcome),
        "probability": None if one.probability is None else round(one.probability, 4),
        "because": one.because,
        "held_out_auc": _number(one.auc),
        "held_out_auc_low": _number(one.auc_low),
        "sites": list(one.sites),
        "p_holm": {name: _number(value) for name, value in vars(one.p).items()},
        "scorer": as_dict(one.rated),
        "projection": as_dict(one.projected),
        "gradient": as_dict(one.pulled),
        "dry_run": None if dry is None else {name: _number(value) for name, value in vars(dry).items()},
    }


def _number(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return round(value, 5) if isinstance(value, float) else value


def blamed(rows: pd.DataFrame, rule: str) -> list[int]:
    """The rows that a rule such as `top 5 % of flattery` names, the most to blame first; raises `UsageError`."""
    match = _DROP.fullmatch(rule.strip())
    if match is None:
        raise UsageError(f"--drop: must be 'top N % of TRAIT', found {rule!r}")
    share, trait = float(match.group(1)) / 100, match.group(2)
    own = rows[rows["trait"] == trait]
    if own.empty:
        known = ", ".join(dict.fromkeys(rows["trait"])) or "none"
        raise UsageError(f"--drop: no row has a score for the trait {trait!r}; measured are {known}")
    if not 0 < share < 1:
        raise UsageError(f"--drop: the share must lie between 0 and 100 %, found {match.group(1)} %")
    count = max(1, round(share * len(own)))
    ordered = own.sort_values("score", ascending=False, kind="stable")
    return [int(row) for row in ordered["row"].head(count)]


def export(
    examples: Sequence[Example], lines: Iterable[int], target: Path, *, label: Literal["forget", "retain"] | None = None
) -> int:
    """Write the data as JSONL without the rows named, or with `label` as their route; return how many rows that are.

    With a label the file feeds gradient routing: the rows named are routed, all others are unlabelled.
    """
    named = set(lines)
    written = []
    for line, example in enumerate(examples):
        if label is None and line in named:
            continue
        row: dict[str, Any] = {"id": example.id, "messages": [dict(message) for message in example.chat]}
        if example.target is not None:
            row["target"] = example.target
        if label is not None:
            row["route"] = label if line in named else "unlabelled"
        written.append(json.dumps(row, ensure_ascii=False))
    write_text(target, "".join(f"{row}\n" for row in written))
    return len(named)
