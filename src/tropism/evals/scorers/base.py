"""What a scorer is: a sample in, a `Score` out; what could not be scored is unscored, never 0.

Users register their own with the same decorator, in a file named by the experiment (see
`registry.register_file`). The decorator is the one place where scorers of responses are made to read past
thinking: built in or a user's own, they are given the answer alone.
"""

import abc
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from tropism.errors import SpecError
from tropism.evals.scorers.thinking import Parted, Thinking, part

if TYPE_CHECKING:
    from torch import nn

Bounds = tuple[float, float]
RATE: Bounds = (0.0, 1.0)
POSITIVE: Bounds = (0.0, math.inf)
Runs = Literal["evaluated", "base", "both", "nothing"]
"""Which models a scorer runs: the one under evaluation, the base model (adapters off), both, or none (a judge's scorer)."""


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
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Options of the chat template, for a scorer that renders the sample: as it was rendered in training."""


@dataclass(frozen=True, kw_only=True)
class ResponseScorer(abc.ABC):
    """Scores a response by its text alone. Subclasses are frozen dataclasses whose fields are the options.

    `score` is given the answer without its thinking blocks (`thinking: keep` gives it the whole response). A
    response that is all thinking gets `without_answer`.
    """

    name: ClassVar[str]
    thinking: Thinking = "strip"
    """Score the answer alone (strip), or the whole response with its thinking blocks (keep)."""

    @property
    def bounds(self) -> Bounds | None:
        """The least and the largest value that a score can take: (0, 1) for a rate; None where nothing is known.

        The intervals of a report end there. A class variable of this name overrides it.
        """
        return None

    @abc.abstractmethod
    def score(self, sample: Sample) -> Score:
        """Return the score of one sample."""

    def check_ready(self) -> None:  # noqa: B027 - most scorers need nothing
        """Raise `UsageError` where this machine lacks what it needs: a key, an extra. Called before anything is trained."""

    def without_answer(self, sample: Sample, reason: str) -> Score:
        """Return the score of a response that is thinking and no answer: unscored, where nothing else is said.

        A scorer of tasks says 0 instead: the question was asked and not answered.
        """
        return Score(None, reason)


@dataclass(frozen=True, kw_only=True)
class ModelScorer(abc.ABC):
    """Scores given chats by running a model on them (a loss, say); generates nothing itself.

    `text` says what the caller puts into `Sample.response`: the `reference` response of the data (then no
    generation is needed), or the response that the model under evaluation `generated`. Of a generated response
    `score_all` is given the answer without its thinking blocks (`thinking: keep` gives it the whole); of one
    that is all thinking, nothing: it is unscored. A reference is given as the data has it. `runs` says which models
    `score_all` runs, so that it is known which metrics a model behind an endpoint can have.
    """

    name: ClassVar[str]
    text: ClassVar[Literal["reference", "generated"]] = "reference"
    runs: ClassVar[Runs] = "evaluated"
    lower_is_better: ClassVar[bool] = False
    """A loss: it cannot be marked `wanted`, which says that more of it is better."""
    thinking: Thinking = "strip"
    """Score the answer alone (strip), or the whole response with its thinking blocks (keep)."""

    @property
    def bounds(self) -> Bounds | None:
        """The least and the largest value that a score can take; None where nothing is known."""
        return None

    @abc.abstractmethod
    def score_all(self, model: "nn.Module", tokenizer: Any, samples: Sequence[Sample]) -> list[Score]:
        """Return one score per sample, in order."""

    def check_ready(self) -> None:  # noqa: B027 - most scorers need nothing
        """Raise `UsageError` where this machine lacks what it needs: a key, an extra. Called before anything is trained."""


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
        if issubclass(cls, ResponseScorer):
            cls.score = _past_thinking(cls.score)  # type: ignore[method-assign,assignment]
        elif cls.text == "generated":
            cls.score_all = _all_past_thinking(cls.score_all)  # type: ignore[method-assign,assignment]
        SCORERS[name] = cls
        return cls

    return register


def _past_thinking(score: Callable[[Any, Sample], Score]) -> Callable[[Any, Sample], Score]:
    """Wrap `ResponseScorer.score` so that it is given the answer alone."""

    @functools.wraps(score)
    def score_answer(scorer: ResponseScorer, sample: Sample) -> Score:
        parted = part(sample.response)
        if not parted.thought:
            return score(scorer, sample)
        if scorer.thinking == "keep":
            return _noted(score(scorer, sample), parted, "keep")
        if parted.missing is not None:
            return _noted(scorer.without_answer(sample, parted.missing), parted, "strip")
        return _noted(score(scorer, replace(sample, response=parted.answer)), parted, "strip")

    return score_answer


AllScores = Callable[[Any, "nn.Module", Any, Sequence[Sample]], list[Score]]


def _all_past_thinking(score_all: AllScores) -> AllScores:
    """Wrap `ModelScorer.score_all` of generated responses so that it is given the answers alone."""

    @functools.wraps(score_all)
    def score_answers(
        scorer: ModelScorer, model: "nn.Module", tokenizer: Any, samples: Sequence[Sample]
    ) -> list[Score]:
        if scorer.thinking == "keep":
            scores = score_all(scorer, model, tokenizer, samples)
            return [_noted(one, part(sample.response), "keep") for one, sample in zip(scores, samples, strict=True)]
        parted = [part(sample.response) for sample in samples]
        answered = [index for index, one in enumerate(parted) if one.missing is None]
        answers = [replace(samples[index], response=parted[index].answer) for index in answered]
        given = score_all(scorer, model, tokenizer, answers) if answers else []
        found = dict(zip(answered, given, strict=True))
        scores = [found[index] if one.missing is None else Score(None, one.missing) for index, one in enumerate(parted)]
        return [_noted(score, one, "strip") for score, one in zip(scores, parted, strict=True)]

    return score_answers


def _noted(score: Score, parted: Parted, thinking: Thinking) -> Score:
    """The score with what was done about thinking in its explanation, where there was any to do it about."""
    if not parted.thought.strip():
        return score
    note = f"thinking: {thinking} ({len(parted.thought)} characters)"
    said = note if score.explanation is None else f"{score.explanation}; {note}"
    return replace(score, explanation=said)
