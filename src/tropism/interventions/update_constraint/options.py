"""The options of an update constraint, apart from its directions: what the machinery runs on."""

from dataclasses import dataclass
from typing import Literal

Space = Literal["delta_weight", "parameter"]
When = Literal["update", "gradient"]
Mode = Literal["equality", "one_sided", "soft"]
Per = Literal["weight", "model"]


@dataclass(frozen=True)
class Options:
    """See `UpdateConstraint`, whose fields these are."""

    space: Space
    when: When
    mode: Mode
    strength: float
    per: Per
    tolerance: float
