"""What each condition of an experiment is for, so that rules can tell guards from controls.

The experiment file says it: `role: control | guard | reference`. Where it does not, the structure of the condition
decides (a random guard is a control), and never its name.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from tropism.names import BASE
from tropism.results.summary import baseline_name


class Role(StrEnum):
    """A condition's part in the experiment."""

    BASE = "untrained"
    BASELINE = "baseline"
    CEILING = "without the trait"
    """A reference that trains on plain data."""
    REFERENCE = "reference"
    """Shown beside the others; neither tested nor held against a guard."""
    CONTROL = "control"
    """What a guard must beat, so that its effect is its own."""
    GUARD = "guard"


def role_of(experiment: Mapping[str, Any], condition: str) -> Role:
    """Return a condition's role: as the file says, else by structure.

    By structure, random directions, labels or adapters make a control, and so does shrinkage, which only learns
    less; plain data without a guard make a ceiling; anything else is a guard.
    """
    if condition == BASE:
        return Role.BASE
    if condition == baseline_name(experiment):
        return Role.BASELINE
    described = _described(experiment, condition)
    given = described.get("role")
    if given in (Role.CONTROL, Role.GUARD):
        return Role(given)
    # The file's word stands also against the structure: a random guard may be the one under test.
    if given is None and (_random(described) or _only_shrinks(described)):
        return Role.CONTROL
    if _plain(described):
        return Role.CEILING
    return Role.REFERENCE if given == Role.REFERENCE else Role.GUARD


def assumed(experiment: Mapping[str, Any]) -> dict[str, Role]:
    """Return the conditions without a `role` whose structure leaves open what they are for, and what they count as.

    A system prompt may be an inoculation or a placebo, other data a guard or a reference: only the author knows.
    """
    found = {}
    for condition in experiment.get("conditions") or {}:
        described = _described(experiment, condition)
        role = role_of(experiment, condition)
        unclear = role is Role.GUARD and not described.get("guard") and not described.get("after")
        if described.get("role") is None and (unclear or _only_shrinks(described)):
            found[str(condition)] = role
    return found


def guards_of(experiment: Mapping[str, Any], condition: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, options) of every guard that a condition attaches; a list of guards is a composition."""
    return _parts(_described(experiment, condition).get("guard"))


def _described(experiment: Mapping[str, Any], condition: str) -> Mapping[str, Any]:
    described = (experiment.get("conditions") or {}).get(condition)
    return described if isinstance(described, dict) else {}


def _parts(guard: Any) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for part in guard if isinstance(guard, list) else [guard]:
        if isinstance(part, dict):
            found += [(str(name), options if isinstance(options, dict) else {}) for name, options in part.items()]
    return found


def _only_shrinks(described: Mapping[str, Any]) -> bool:
    edits = [name for name, _ in _parts(described.get("after"))]
    return edits == ["shrinkage"] and not described.get("guard")


def _plain(described: Mapping[str, Any]) -> bool:
    data = described.get("data")
    return isinstance(data, dict) and data.get("transform") == "plain" and not described.get("guard")


def _random(described: Mapping[str, Any]) -> bool:
    """Whether the guard, its edit or the data of a condition have a `random:` that is in force."""
    return any(_has_random(described.get(part)) for part in ("guard", "after", "data"))


def _has_random(value: Any) -> bool:
    if isinstance(value, list):
        return any(_has_random(part) for part in value)
    if isinstance(value, dict):
        return bool(value.get("random")) or any(_has_random(part) for part in value.values())
    return False
