"""From a contrast to directions with their evidence: split → find → answer → validate → save.

The command line and an experiment both come this way, so directions of either carry the same evidence.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tropism.atomic import write_text
from tropism.data.render import Positions
from tropism.directions.artifact import Directions
from tropism.directions.components import Components, choose_components
from tropism.directions.contrasts import Contrast
from tropism.directions.find import find_directions, with_answers
from tropism.directions.finder import Finder, Unit
from tropism.directions.validate import Behaviour, validate_directions
from tropism.directions.validity import ValidityReport, validity_path
from tropism.site import Site

ANSWER_TOKENS = 64
"""Length of the answers that are generated for a contrast of system prompts."""

BehaviourOf = Callable[[Contrast], Behaviour | None]
"""Scores the model's own answers, given the held-out contrast with its responses."""


@dataclass(frozen=True)
class Evidence:
    """How directions are read on held-out chats, and what they are compared with."""

    behaviour: BehaviourOf | None = None
    others: Mapping[str, Directions] = field(default_factory=dict)
    """Directions of other finders or contrasts, for the angles between them."""
    template_kwargs: Mapping[str, Any] | None = None
    batch_size: int = 16
    seed: int = 0
    force: bool = False
    """Validate directions that were found on a model of another config hash."""

    def report(
        self,
        directions: Directions,
        model: nn.Module,
        tokenizer: Any,
        held_out: Contrast,
        *,
        name: str,
        positions: Positions,
    ) -> ValidityReport:
        """Return the evidence for directions on chats they were not found on; raises as `validate_directions`."""
        held_out, _ = with_answers(
            model, tokenizer, held_out, positions, self.template_kwargs, ANSWER_TOKENS, self.batch_size
        )
        return validate_directions(
            directions,
            model,
            tokenizer,
            held_out,
            name=name,
            behaviour=None if self.behaviour is None else self.behaviour(held_out),
            others=self.others,
            template_kwargs=self.template_kwargs,
            batch_size=self.batch_size,
            seed=self.seed,
            force=self.force,
        )


@dataclass(frozen=True)
class Validated:
    """Directions with their validity report."""

    directions: Directions
    report: ValidityReport

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write the directions to `path` and the report beside them; `about` is added to the report."""
        self.directions.save(path)
        said = {**self.report.to_json(), **(about or {})}
        write_text(validity_path(path), json.dumps(said, indent=1, allow_nan=False))


def find_and_validate(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    *,
    name: str,
    sites: Sequence[Site],
    finder: Finder | None = None,
    positions: Positions = "response",
    held_out: float = 0.25,
    known: Directions | None = None,
    components: Components | None = None,
    evidence: Evidence | None = None,
    phase: Callable[[str], None] = lambda _: None,
    pool: Unit | None = None,
) -> Validated:
    """Find directions on one part of a contrast and validate them on the rest.

    Args:
        held_out: share of the prompts kept for validation.
        known: directions that were found on the same contrast before: they are validated and not found again.
        components: which of the directions at each site are kept.
        evidence: how to validate them; its seed is also the finder's and the split's.
        phase: is told what goes on.
        pool: as in `find_directions`.

    Raises as `find_directions` and `validate_directions`.
    """
    evidence = evidence or Evidence()
    to_find, to_validate = contrast.split(held_out, evidence.seed)
    directions = known
    if directions is None:
        unit = "pairs" if contrast.paired else "chats"
        phase(f"finding directions on {len(to_find)} {unit} at {len(sites)} sites")
        directions = find_directions(
            model,
            tokenizer,
            to_find,
            sites=sites,
            finder=finder,
            positions=positions,
            batch_size=evidence.batch_size,
            template_kwargs=evidence.template_kwargs,
            max_new_tokens=ANSWER_TOKENS,
            seed=evidence.seed,
            pool=pool,
        )
        if components is not None:
            directions = choose_components(directions, components)
    phase("validating on held-out chats")
    report = evidence.report(directions, model, tokenizer, to_validate, name=name, positions=positions)
    return Validated(directions, report)
