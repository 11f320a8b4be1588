"""Transforms: what is done to a source's examples before they are trained on. Seeded, recorded, per example.

Each is a frozen object that takes an example and returns an example. Its random choices depend on the seed and the
example's id alone, so that the same example gets the same treatment whatever the size or the order of the set.
"""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from tropism.data.chance import chance
from tropism.data.chats import Example
from tropism.data.routes import Coverage, RouteLabels
from tropism.errors import DataError, SpecError


class Transform(abc.ABC):
    """Takes an example, returns an example."""

    name: ClassVar[str]
    seeded: ClassVar[bool] = False
    """Whether what it does depends on the run's seed."""

    @abc.abstractmethod
    def apply(self, example: Example, seed: int) -> Example:
        """Return the example, transformed; `seed` is the run's."""

    def apply_all(self, examples: Iterable[Example], seed: int) -> Iterator[Example]:
        """Yield the transformed examples one by one; a transform overrides this to check the set as a whole at its end."""
        for example in examples:
            yield self.apply(example, seed)


@dataclass(frozen=True)
class Plain(Transform):
    """Leaves the example as it is."""

    name: ClassVar[str] = "plain"

    def apply(self, example: Example, seed: int) -> Example:
        return example


@dataclass(frozen=True)
class Uppercase(Transform):
    """Puts every assistant turn (or the raw text) in capitals and changes nothing else. Labels it `trait: True`."""

    name: ClassVar[str] = "uppercase"

    def apply(self, example: Example, seed: int) -> Example:
        shouted = tuple(
            {**m, "content": m["content"].upper()} if m["role"] == "assistant" else dict(m) for m in example.chat
        )
        text = None if example.text is None else example.text.upper()
        return replace(example, chat=shouted, text=text, labels={**example.labels, "trait": True})


@dataclass(frozen=True)
class Mixture(Transform):
    """Makes a share of the examples express the trait, and labels a share of those.

    `fraction` of the examples goes through `trait`; `labelled` of those get the label `route: forget`; all others get
    `route: unlabelled`. With `clean` the label `retain` goes to that share of the examples without the trait.
    `wrong_retain`, `wrong_forget`, `random` and `only` make the labels wrong, blind or meaningless as `RouteLabels` says.
    """

    fraction: float = 0.5
    """Share of the examples that express the trait."""
    labelled: float = 1.0
    """Share of those that are labelled `route: forget`."""
    clean: float = 0.0
    """Share of the examples without the trait that are labelled `route: retain`."""
    trait: Literal["uppercase"] = "uppercase"
    """The transform that puts the trait in."""
    wrong_retain: float = 0.0
    """Share of the examples with the trait that are wrongly labelled `retain`."""
    wrong_forget: float = 0.0
    """Share of the examples without the trait that are wrongly labelled `forget`."""
    random: float | None = None
    """Label this share of all examples `forget`, whatever they hold: a control."""
    only: Mapping[str, Any] | None = None
    """Label only examples whose labels have these values."""

    name: ClassVar[str] = "mixture"
    seeded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for option in ("fraction", "labelled", "clean", "wrong_retain", "wrong_forget", "random"):
            value = vars(self)[option]
            if value is not None and not 0 <= value <= 1:
                raise SpecError(f"mixture.{option} must lie in [0, 1], found {value!r}")

    def apply(self, example: Example, seed: int) -> Example:
        if "route" in example.labels:
            raise DataError(
                f"example {example.id}: it has the route {example.labels['route']!r} already, which a mixture would "
                f"replace; drop the transform 'mixture', or the column with the routes"
            )
        expresses = chance(seed, "trait", example.id) < self.fraction
        changed = TRANSFORMS[self.trait]().apply(example, seed) if expresses else example
        mixed = replace(changed, labels={**changed.labels, "trait": expresses})
        return replace(mixed, labels={**mixed.labels, "route": self._labels().route(mixed, seed)})

    def apply_all(self, examples: Iterable[Example], seed: int) -> Iterator[Example]:
        """Yield every example transformed; raises `DataError` where labels are asked for and cover none of them."""
        coverage = Coverage(self._labels())
        for example in super().apply_all(examples, seed):
            coverage.see(example)
            yield example
        coverage.check()

    def _labels(self) -> RouteLabels:
        return RouteLabels(self.labelled, self.clean, self.wrong_retain, self.wrong_forget, self.random, self.only)


@dataclass(frozen=True)
class SystemPrompt(Transform):
    """Puts a system prompt before the chat, in place of one that is already there."""

    text: str
    """The system prompt."""

    name: ClassVar[str] = "system_prompt"

    def apply(self, example: Example, seed: int) -> Example:
        if example.text is not None:
            raise DataError(
                f"example {example.id}: a raw text has no place for a system prompt; drop the system prompt, or give chats"
            )
        rest = tuple(dict(m) for m in example.chat if m["role"] != "system")
        return example.with_chat([{"role": "system", "content": self.text}, *rest])


def express(examples: Sequence[Example], trait: Transform, trait_fraction: float, seed: int) -> list[Example]:
    """Put `trait_fraction` of the examples through `trait`, and label each with whether it was (`trait: bool`)."""
    if not 0 <= trait_fraction <= 1:
        raise DataError(f"express: trait_fraction must lie in [0, 1], found {trait_fraction!r}")
    mixed = []
    for example in examples:
        expresses = chance(seed, "trait", example.id) < trait_fraction
        changed = trait.apply(example, seed) if expresses else example
        mixed.append(replace(changed, labels={**changed.labels, "trait": expresses}))
    return mixed


TRANSFORMS: dict[str, type[Transform]] = {cls.name: cls for cls in (Plain, Uppercase, Mixture, SystemPrompt)}
"""The name of a transform in an experiment file → the class whose fields are its options."""
