"""Which conditions of an experiment are trained, once a seed, and which are there already and have one run."""

from collections.abc import Mapping
from typing import Any

UNTRAINED = frozenset({"adapter", "model", "endpoint"})
"""The keys of a condition of which any says that nothing is trained for it."""


def is_trained(experiment: Mapping[str, Any], condition: str) -> bool:
    """Whether a condition of a resolved experiment file is trained, and so has a run per seed."""
    described = (experiment.get("conditions") or {}).get(condition)
    if not isinstance(described, Mapping):
        return True
    return not any(described.get(key) is not None for key in UNTRAINED)


def kind_of(experiment: Mapping[str, Any], condition: str) -> str:
    """Return `adapter`, `model` or `endpoint` for a condition that is not trained; empty for one that is."""
    described = (experiment.get("conditions") or {}).get(condition)
    if not isinstance(described, Mapping):
        return ""
    return next((key for key in sorted(UNTRAINED) if described.get(key) is not None), "")
