"""The loss of reference responses: did the model learn the data, whatever it now generates?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tropism.errors import SpecError
from tropism.evals.scorers.base import POSITIVE, RATE, Bounds, ModelScorer, Sample, Score, scorer

if TYPE_CHECKING:
    from torch import nn


@scorer("response_loss")
@dataclass(frozen=True)
class ResponseLoss(ModelScorer):
    """Mean loss in nats of the reference response's tokens, `−1/n Σ log p(token | prompt, tokens before)`.

    The end-of-turn token counts; of raw text, every token but the first, and what ends it. The mean is over the tokens of
    one response; the mean over responses is the caller's. Unscored: no reference response, more tokens than the model has
    positions, a loss that is not finite.
    """

    bounds: ClassVar[Bounds] = POSITIVE
    lower_is_better: ClassVar[bool] = True
    batch_size: int = 8
    """Responses per forward pass."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SpecError(f"response_loss: batch_size must be at least 1, found {self.batch_size!r}")

    def score_all(self, model: "nn.Module", tokenizer: Any, samples: Sequence[Sample]) -> list[Score]:
        from tropism.evals.scorers.token_losses import mean_losses

        found = mean_losses(model, tokenizer, samples, self.batch_size, reference=True)
        return [loss_score(result) for result in found]


def loss_score(result: tuple[float, int] | str) -> Score:
    """A mean loss and its token count, or the reason for having none, as a `Score`."""
    if isinstance(result, str):
        return Score(None, result)
    loss, tokens = result
    if not math.isfinite(loss):
        return Score(None, f"the loss is {loss}")
    return Score(loss, explanation=f"{tokens} tokens")


@scorer("response_likelihood")
@dataclass(frozen=True)
class ResponseLikelihood(ModelScorer):
    """How likely the model finds the reference response: `exp(−response_loss)`, the geometric mean of its tokens' probabilities.

    In 0..1 and higher is better, so that it can be marked `wanted` with a margin: a skill that needs no right answer to be
    told. Unscored as `response_loss`.
    """

    bounds: ClassVar[Bounds] = RATE
    batch_size: int = 8
    """Responses per forward pass."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SpecError(f"response_likelihood: batch_size must be at least 1, found {self.batch_size!r}")

    def score_all(self, model: "nn.Module", tokenizer: Any, samples: Sequence[Sample]) -> list[Score]:
        losses = ResponseLoss(self.batch_size).score_all(model, tokenizer, samples)
        return [
            one if one.value is None else Score(math.exp(-one.value), explanation=one.explanation) for one in losses
        ]
