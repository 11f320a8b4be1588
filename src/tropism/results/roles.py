"""What each condition of an experiment is for: read from the experiment file, so that rules can tell guards
from controls.
"""

from enum import StrEnum
from typing import Any

from tropism.names import BASE
from tropism.results.summary import baseline_name


class Role(StrEnum):
    """A condition's part in the experiment."""

    BASE = "untrained"
    BASELINE = "baseline"
    CEILING = "without the trait"
    CONTROL = "control"
    GUARD = "guard"


def role_of(experiment: dict[str, Any], condition: str) -> Role:
    """A ceiling trains on plain data; a control is random, a placebo or has shuffled labels; what is left is
    a guard.
    """
    if condition == BASE:
        return Role.BASE
    if condition == baseline_name(experiment):
        return Role.BASELINE
    described = (experiment.get("conditions") or {}).get(condition) or {}
    if condition.startswith(("placebo", "random")) or _random(described.get("guard")) or _random(described.get("data")):
        return Role.CONTROL
    data = described.get("data")
    if isinstance(data, dict) and data.get("transform") == "plain" and not described.get("guard"):
        return Role.CEILING
    return Role.GUARD


def guards_of(experiment: dict[str, Any], condition: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, options) of every guard that a condition attaches; a list of guards is a composition."""
    described = (experiment.get("conditions") or {}).get(condition) or {}
    guard = described.get("guard") if isinstance(described, dict) else None
    parts = guard if isinstance(guard, list) else [guard]
    return [
        (str(name), options if isinstance(options, dict) else {})
        for part in parts
        if isinstance(part, dict)
        for name, options in part.items()
    ]


def _random(value: Any) -> bool:
    if isinstance(value, list):
        return any(_random(part) for part in value)
    if isinstance(value, dict):
        return any((key == "random" and bool(part)) or part == "random" or _random(part) for key, part in value.items())
    return False
