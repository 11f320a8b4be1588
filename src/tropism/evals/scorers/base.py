"""What a scorer is: a sample in, a `Score` out; what could not be scored is unscored, never 0.

Users register their own with the same decorator, in a file named by the experiment (see
`registry.register_file`).
"""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from tropism.errors import SpecError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Score:
    """`value`, a finite number, or None with the reason in `unscored`; exactly one of the two is set."""

    value: float | None
    unscored: str | None = None
    explanation: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.unscored is None):
            raise ValueError(
                f"a Score has a value or a reason for having none, found {self.value!r} and {self.unscored!r}"
            )
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"Score.value must be finite, found {self.value!r}; give a reason in unscored instead")


@dataclass(frozen=True)
class Sample:
    """A response to be scored, with what was asked and what is known of the right answer."""

    id: str
    prompt: Sequence[Mapping[str, str]]
    response: str
    target: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)


class ResponseScorer(abc.ABC):
    """Scores a response by its text alone. Subclasses are frozen dataclasses whose fields are the options."""

    name: ClassVar[str]

    @abc.abstractmethod
    def score(self, sample: Sample) -> Score:
        """The score of one sample."""


class ModelScorer(abc.ABC):
    """Scores given chats by running a model on them (a loss, say); generates nothing itself.

    `text` says what the caller puts into `Sample.response`: the `reference` response of the data (then no
    generation is needed), or the response that the model under evaluation `generated`.
    """

    name: ClassVar[str]
    text: ClassVar[Literal["reference", "generated"]] = "reference"

    @abc.abstractmethod
    def score_all(self, model: "nn.Module", tokenizer: Any, samples: Sequence[Sample]) -> list[Score]:
        """One score a sample, in order."""


AnyScorer = ResponseScorer | ModelScorer
SCORERS: dict[str, type[AnyScorer]] = {}

S = TypeVar("S", bound=type[AnyScorer])


def scorer(name: str) -> Callable[[S], S]:
    """Register a scorer class under the name by which experiment files call it."""

    def register(cls: S) -> S:
        if not isinstance(cls, type) or not issubclass(cls, ResponseScorer | ModelScorer):
            raise SpecError(f"scorer {name!r}: {cls.__qualname__} must derive from ResponseScorer or ModelScorer")
        known = SCORERS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise SpecError(f"scorer {name!r} is already registered by {known.__qualname__}; choose another name")
        cls.name = name
        SCORERS[name] = cls
        return cls

    return register
