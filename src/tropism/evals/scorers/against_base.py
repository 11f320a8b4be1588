"""What the base model thinks of the tuned one: perplexity of its responses, and divergence from the base.

The base model is the same model with its PEFT adapters switched off. A model without adapters *is* the base:
its perplexity is its own, and its divergence is 0. (A model tuned without adapters must be compared by hand.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tropism.errors import SpecError
from tropism.evals.scorers.base import POSITIVE, Bounds, ModelScorer, Runs, Sample, Score, scorer

if TYPE_CHECKING:
    from torch import nn

    from tropism.data.batches import Batch


def _positive(name: str, batch_size: int) -> None:
    if batch_size < 1:
        raise SpecError(f"{name}: batch_size must be at least 1, found {batch_size!r}")


@scorer("base_perplexity")
@dataclass(frozen=True)
class BasePerplexity(ModelScorer):
    """Coherence: `exp(mean loss)` of the generated response under the base model, given the same prompt.

    Low for fluent text, and also for a loop (a base model finds repetition likely): read it beside
    `repetition`. Guards that are attached while it runs act on the base model as well.
    """

    runs: ClassVar[Runs] = "base"
    text: ClassVar[Literal["reference", "generated"]] = "generated"
    bounds: ClassVar[Bounds] = (1.0, math.inf)
    lower_is_better: ClassVar[bool] = True
    batch_size: int = 8
    """Responses per forward pass."""

    def __post_init__(self) -> None:
        _positive("base_perplexity", self.batch_size)

    def score_all(self, model: "nn.Module", tokenizer: Any, samples: Sequence[Sample]) -> list[Score]:
        from tropism.activations.mode import adapters_off
        from tropism.evals.scorers.loss import loss_score
        from tropism.evals.scorers.token_losses import mean_losses

        with adapters_off(model):
            losses = mean_losses(model, tokenizer, samples, self.batch_size)
        return [_perplexity(loss_score(loss)) for loss in losses]


def _perplexity(score: Score) -> Score:
    if score.value is None:
        return score
    if score.value > 700:  # exp of more is no float
        return Score(None, f"a mean loss of {score.value:.0f} nats")
    return Score(math.exp(score.value), explanation=score.explanation)


@scorer("kl_to_base")
@dataclass(frozen=True)
class KLToBase(ModelScorer):
    """`KL(p ‖ p_base) = Σ p·(log p − log p_base)` in nats, of the next token, mean over the reference
    response's tokens.

    How far the tuned model has moved on these prompts, whatever it was asked to learn. Teacher-forced on the
    reference response, so both models see the same text. Unscored without a reference response.
    """

    runs: ClassVar[Runs] = "both"
    bounds: ClassVar[Bounds] = POSITIVE
    lower_is_better: ClassVar[bool] = True
    batch_size: int = 4
    """Responses per forward pass."""

    def __post_init__(self) -> None:
        _positive("kl_to_base", self.batch_size)

    def score_all(self, model: "nn.Module", tokenizer: Any, samples: Sequence[Sample]) -> list[Score]:
        from tropism.activations.mode import adapters_off
        from tropism.evals.scorers.loss import loss_score
        from tropism.evals.scorers.token_losses import logits_at, over_responses, token_divergences

        def divergences(batch: "Batch", targets: Sequence[range]) -> list[Any]:
            tuned = logits_at(model, batch, targets)
            with adapters_off(model):
                base = logits_at(model, batch, targets)
            return token_divergences(tuned, base, [len(places) for places in targets])

        found = over_responses(model, tokenizer, samples, self.batch_size, divergences, reference=True)
        return [loss_score(row) for row in found]
