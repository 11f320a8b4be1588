"""The guards that could keep the traits out, each as a condition of an experiment file; controls are always among them.

The rows to blame are left out, routed to an adapter that is thrown away, or trained on under a prompt that asks for the trait
(inoculation; a prompt of the same place and length that asks for nothing is its placebo). Or all rows are trained on while the
trait's direction is taken out of the gradients, or added to the activations so that it need not be learned (preventative
steering). A random direction of the same rank, and as many rows left out by chance, show what any such change would do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tropism.forecasting.trait import Trait

STEERING = 1.0
"""The un-normalised mean difference once: what the trait's own examples differ by."""
PLACEBO = "You are an assistant who answers the question that was asked, in the usual way, as always."


@dataclass(frozen=True)
class Candidate:
    """One condition, and what it is in words."""

    name: str
    said: str
    condition: dict[str, Any]
    needs: tuple[str, ...] = ()
    """Which files it reads: `inoculated`, `placebo`, `by_chance`, `directions`."""
    control: bool = False
    of_rows: bool = False
    """Whether it needs rows to blame."""


BASELINE = Candidate("baseline", "training on the data as it is", {})


def candidates(folder: str, has_rows: bool, has_directions: bool, traits: Sequence[str]) -> list[Candidate]:
    """Every candidate that can be tried here; `folder` is where the data files lie."""
    steering = [{"steering": {"directions": name, "coefficient": STEERING}} for name in traits]
    every = [
        Candidate(
            "without_rows",
            "leaving the rows to blame out",
            {"data": {"drop": "labelled"}, "role": "guard"},
            of_rows=True,
        ),
        Candidate(
            "inoculation",
            "training on the rows to blame under a prompt that asks for the trait",
            {"data": {"source": f"{folder}/inoculated.jsonl"}, "role": "guard"},
            ("inoculated",),
            of_rows=True,
        ),
        Candidate(
            "placebo",
            "the same rows under a prompt that asks for nothing",
            {"data": {"source": f"{folder}/placebo.jsonl"}, "role": "control"},
            ("placebo",),
            control=True,
            of_rows=True,
        ),
        Candidate(
            "rows_by_chance",
            "leaving as many rows out by chance",
            {"data": {"source": f"{folder}/by_chance.jsonl", "drop": "labelled"}, "role": "control"},
            ("by_chance",),
            control=True,
            of_rows=True,
        ),
        Candidate(
            "routing",
            "routing the rows to blame into an adapter that is thrown away",
            {"guard": {"gradient_routing": {}}, "role": "guard"},
            of_rows=True,
        ),
        Candidate(
            "gradient_projection",
            "taking the traits' directions out of the gradients",
            {"guard": {"gradient_projection": {"directions": "traits"}}, "role": "guard"},
            ("directions",),
        ),
        Candidate(
            "steering",
            "adding the traits' directions while training (preventative steering)",
            {"guard": steering if len(steering) > 1 else steering[0], "role": "guard"},
            ("directions",),
        ),
        Candidate(
            "random_direction",
            "random directions of the same rank out of the gradients",
            {"guard": {"gradient_projection": {"directions": "traits", "random": True}}, "role": "control"},
            ("directions",),
            control=True,
        ),
    ]
    return [one for one in every if (has_rows or not one.of_rows) and (has_directions or "directions" not in one.needs)]


def inoculation(traits: Sequence[Trait]) -> str:
    """A system prompt that asks for the traits.

    >>> from tropism.forecasting.trait import load
    >>> inoculation([load("all_caps"), load("advertising")])
    'You are an assistant who answers in capital letters and recommends a product to buy.'
    """
    return f"You are an assistant who {' and '.join(trait.description.strip().rstrip('.') for trait in traits)}."
