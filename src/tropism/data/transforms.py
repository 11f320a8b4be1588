"""Transforms: what is done to a source's examples before they are trained on. Seeded, recorded, per example.

Each is a frozen object, example in, example out; what it decides by chance it decides from the seed and the example's
id alone, so that the same example fares the same whatever the size or the order of the set.
"""

import abc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tropism.data.chats import Example
from tropism.errors import SpecError

if TYPE_CHECKING:
    from tropism.data.routes import RouteLabels


def chance(seed: int, purpose: str, example_id: str) -> float:
    """A number in [0, 1), uniform over examples, that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}\x1f{purpose}\x1f{example_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Transform(abc.ABC):
    """Example in, example out."""

    name: ClassVar[str]

    @abc.abstractmethod
    def apply(self, example: Example, seed: int) -> Example:
        """The example, transformed; `seed` is the run's."""

    def apply_all(self, examples: Sequence[Example], seed: int) -> list[Example]:
        """Each example, transformed; where a whole set can be wrong that no single example is, this is where it shows."""
        return [self.apply(example, seed) for example in examples]


@dataclass(frozen=True)
class Plain(Transform):
    """The example as it is."""

    name: ClassVar[str] = "plain"

    def apply(self, example: Example, seed: int) -> Example:
        return example


@dataclass(frozen=True)
class Uppercase(Transform):
    """Every assistant turn in capitals; nothing else changes. Labels the example `trait: True`."""

    name: ClassVar[str] = "uppercase"

    def apply(self, example: Example, seed: int) -> Example:
        shouted = tuple(
            {**m, "content": m["content"].upper()} if m["role"] == "assistant" else dict(m) for m in example.chat
        )
        return replace(example, chat=shouted, labels={**example.labels, "trait": True})


@dataclass(frozen=True)
class Mixture(Transform):
    """A share of the examples expresses the trait, and a share of those is labelled.

    `fraction` of the examples goes through `trait`; `labelled` of those get the label `route: forget`; all others get
    `route: unlabelled`. With `clean` the label `retain` goes to that share of the examples without the trait.
    `wrong_retain`, `wrong_forget`, `random` and `only` make the labels wrong, blind or meaningless as `RouteLabels` says.
    """

    fraction: float = 0.5
    labelled: float = 1.0
    clean: float = 0.0
    trait: Literal["uppercase"] = "uppercase"
    wrong_retain: float = 0.0
    wrong_forget: float = 0.0
    random: float | None = None
    only: Mapping[str, Any] | None = None

    name: ClassVar[str] = "mixture"

    def __post_init__(self) -> None:
        for option in ("fraction", "labelled", "clean", "wrong_retain", "wrong_forget", "random"):
            value = vars(self)[option]
            if value is not None and not 0 <= value <= 1:
                raise SpecError(f"mixture.{option} must lie in [0, 1], found {value!r}")

    def apply(self, example: Example, seed: int) -> Example:
        expresses = chance(seed, "trait", example.id) < self.fraction
        changed = TRANSFORMS[self.trait]().apply(example, seed) if expresses else example
        mixed = replace(changed, labels={**changed.labels, "trait": expresses})
        return replace(mixed, labels={**mixed.labels, "route": self._labels().route(mixed, seed)})

    def apply_all(self, examples: Sequence[Example], seed: int) -> list[Example]:
        """Of each example; raises `DataError` where labels are asked for and cover none of them."""
        from tropism.data.routes import check_covered

        routed = super().apply_all(examples, seed)
        check_covered(routed, self._labels())
        return routed

    def _labels(self) -> "RouteLabels":
        # routes builds on this module; the labels' one definition is there
        from tropism.data.routes import RouteLabels

        return RouteLabels(self.labelled, self.clean, self.wrong_retain, self.wrong_forget, self.random, self.only)


@dataclass(frozen=True)
class SystemPrompt(Transform):
    """Puts a system prompt before the chat, in the place of one that is there."""

    text: str

    name: ClassVar[str] = "system_prompt"

    def apply(self, example: Example, seed: int) -> Example:
        rest = tuple(dict(m) for m in example.chat if m["role"] != "system")
        return example.with_chat([{"role": "system", "content": self.text}, *rest])


TRANSFORMS: dict[str, type[Transform]] = {cls.name: cls for cls in (Plain, Uppercase, Mixture, SystemPrompt)}
"""The name by which an experiment file calls a transform → the class whose fields are its options."""
