"""`grid:` in an experiment file: every condition once more for each combination of values, under a name that says which.

    grid: {train.lora.r: [4, 16], data.train.size: [100, 400]}

makes of `baseline` the cells `baseline__r-4__size-100`, `baseline__r-4__size-400` and so on. A cell is a condition like any
other: it is trained, measured and compared, and the folder's `experiment.yaml` has it written out.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tropism.experiments.file.complaints import At
from tropism.experiments.file.overrides import merge, nested
from tropism.results.arms import UNTRAINED

HEADS = ("train.", "data.train.", "guard.")
LONGEST = 63
"""A condition's name is a folder's."""


def expanded(data: dict[str, Any]) -> dict[str, Any]:
    """Return a file's content with the cells of its grid among the conditions; raises `At` for what is no grid."""
    grid, conditions = data.get("grid"), data.get("conditions")
    if not isinstance(grid, dict) or not grid or not isinstance(conditions, dict):
        return data
    _check(grid)
    _check_used(grid, conditions)
    made = dict(conditions)
    for name, given in conditions.items():
        condition = given or {}
        if not isinstance(condition, dict) or "cell" in condition or any(condition.get(arm) for arm in UNTRAINED):
            continue
        keys = [key for key in grid if _applies(key, condition)]
        for values in itertools.product(*(enumerate(grid[key]) for key in keys)):
            at = {key: value for key, (_, value) in zip(keys, values, strict=True)}
            if at:
                cell = "__".join([name, *(_part(key, keys, *value) for key, value in zip(keys, values, strict=True))])
                made.setdefault(_name(cell), _cell(condition, name, at))
    return {**data, "conditions": made}


def _check(grid: Mapping[str, Any]) -> None:
    for key, values in grid.items():
        if not isinstance(key, str) or not key.startswith(HEADS):
            raise At(
                ("grid", key), f"must be an option of a condition, which begins with {', '.join(HEADS)}; found {key!r}"
            )
        if not isinstance(values, list) or not values:
            raise At(("grid", key), f"must be the list of values to try, found {values!r}")
        if any(value in values[:index] for index, value in enumerate(values)):
            raise At(("grid", key), f"names a value twice, found {values}")


def _check_used(grid: Mapping[str, Any], conditions: Mapping[str, Any]) -> None:
    """Raise `At` for an option of a guard that no condition has: its values would be tried nowhere."""
    guarded = [condition for condition in conditions.values() if isinstance(condition, dict)]
    for key in grid:
        if key.startswith("guard.") and not any(_applies(key, condition) for condition in guarded):
            raise At(("grid", key), f"does nothing: no condition has the guard {key.split('.')[1]!r}; drop it")


def _applies(key: str, condition: Mapping[str, Any]) -> bool:
    """Whether an option is a condition's: that of a guard is where the condition has this guard."""
    if not key.startswith("guard."):
        return True
    guard = condition.get("guard")
    return isinstance(guard, dict) and key.split(".")[1] in guard


def _part(key: str, keys: Sequence[str], index: int, value: Any) -> str:
    """What a value adds to a cell's name: `r-4`; of a value that is no word, its number in the list."""
    last = key.rpartition(".")[2]
    if sum(other.rpartition(".")[2] == last for other in keys) > 1:
        last = "-".join(key.split(".")[-2:])
    word = str(value).replace(".", "p") if isinstance(value, str | int | float) else ""
    return f"{last}-{word if re.fullmatch(r'[A-Za-z0-9_-]{1,24}', word) else f'v{index}'}"


def _name(cell: str) -> str:
    if len(cell) > LONGEST:
        raise At(
            ("grid",),
            f"makes the name {cell!r} of {len(cell)} letters, and a condition's has at most {LONGEST}; shorten names",
        )
    return cell


def _cell(condition: Mapping[str, Any], of: str, at: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(condition)
    for key, value in at.items():
        made = merge(made, nested(key.replace("data.train.", "data.", 1) if key.startswith("data.") else key, value))
    return {**made, "cell": {"of": of, "at": dict(at)}}
