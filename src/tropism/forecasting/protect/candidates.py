"""The guards that could keep the traits out, each as a condition of an experiment file; controls are always among them.

The rows to blame are left out, routed to an adapter that is thrown away, or trained on under a prompt that asks for the trait
(inoculation; a prompt of the same place and length that asks for nothing is its placebo). Or all rows are trained on while the
trait's direction is taken out of the gradients, or added to the activations so that it need not be learned (preventative
steering). Or nothing is known of the trait: the KL to the base model is added to the loss, or the model's own answers to everyday
questions are mixed in. A random direction of the same rank in the place of each guard's, and as many rows left out by chance,
show what any such change would do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tropism.forecasting.trait import Trait

STEERING = 1.0
"""The un-normalised mean difference once: what the trait's own examples differ by."""
KL = 0.3
"""What a nat of divergence from the base model costs, where a nat of the loss costs 1."""
PLACEBO = "You are an assistant who answers the question that was asked, in the usual way, as always."


@dataclass(frozen=True)
class Candidate:
    """One condition, and what it is in words."""

    name: str
    said: str
    condition: dict[str, Any]
    needs: tuple[str, ...] = ()
    """Which files it reads: `inoculated`, `placebo`, `by_chance`, `directions`, `safe`."""
    control: bool = False
    of_rows: bool = False
    """Whether it needs rows to blame."""


CONTROLS = {
    "placebo": ("inoculation",),
    "rows_by_chance": ("without_rows", "routing"),
    "random_direction": ("gradient_projection",),
    "random_steering": ("steering",),
}
"""Each control, and the guards that it is the control of."""

BASELINE = Candidate("baseline", "training on the data as it is", {})


def candidates(folder: str, has_rows: bool, traits: Sequence[str], has_safe: bool) -> list[Candidate]:
    """Every candidate that can be tried here; `folder` is where the data files lie, `traits` have directions each."""
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
            {"guard": _steering(traits), "role": "guard"},
            ("directions",),
        ),
        Candidate(
            "kl",
            "adding the divergence from the untrained model to the loss (KL)",
            {"guard": {"kl_to_base": {"weight": KL}}, "role": "guard"},
        ),
        Candidate(
            "safe_data",
            "mixing in the untrained model's own answers to everyday questions",
            {"data": {"also": [{"source": f"{folder}/safe.jsonl"}]}, "role": "guard"},
            ("safe",),
        ),
        Candidate(
            "random_direction",
            "random directions of the same rank out of the gradients",
            {"guard": {"gradient_projection": {"directions": "traits", "random": True}}, "role": "control"},
            ("directions",),
            control=True,
        ),
        Candidate(
            "random_steering",
            "adding random directions of the same length while training",
            {"guard": _steering(traits, random=True), "role": "control"},
            ("directions",),
            control=True,
        ),
    ]
    lacking = {need for need, has in (("directions", traits), ("safe", has_safe)) if not has}
    return [one for one in every if (has_rows or not one.of_rows) and not lacking & set(one.needs)]


def chosen(every: Sequence[Candidate], guards: Sequence[str]) -> list[Candidate]:
    """Those that are tried where `guards` are asked for (by default all); every control, and random steering with steering.

    Random steering says nothing of a guard that does not add to the activations; what is taken from the gradients or left out
    at random is what any guard is compared with.
    """
    named = {one.name for one in every if not one.control and (not guards or one.name in guards)}
    return [
        one
        for one in every
        if one.name in named or (one.control and (one.name != "random_steering" or "steering" in named))
    ]


def controls_of(guard: str) -> list[str]:
    """The names of a guard's own controls."""
    return [control for control, guards in CONTROLS.items() if guard in guards]


def _steering(traits: Sequence[str], random: bool = False) -> Any:
    control = {"random": True} if random else {}
    every = [{"steering": {"directions": name, "coefficient": STEERING, **control}} for name in traits]
    return every[0] if len(every) == 1 else every


def inoculation(traits: Sequence[Trait]) -> str:
    """A system prompt that asks for the traits.

    >>> from tropism.forecasting.trait import load
    >>> inoculation([load("all_caps"), load("advertising")])
    'You are an assistant who answers in capital letters and recommends a product to buy.'
    """
    return f"You are an assistant who {' and '.join(trait.description.strip().rstrip('.') for trait in traits)}."
