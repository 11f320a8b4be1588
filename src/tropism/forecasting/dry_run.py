"""Tier 3: a short training with the user's own recipe, and what it predicts for the whole of it.

A tenth of the planned steps (eight at least) is trained on a sample of the data. Before and after, the model answers
held-out prompts, and each answer is scored. Answers are sampled at temperature 1: a model that has learned data of which
a fifth shouts shouts in a fifth of its samples, and in none of its likeliest answers. The rate at the full budget is
extrapolated: with `p` the rate after `t` steps, `logit p = a + b·t`, through rates smoothed as `(k + ½)/(n + 1)`, and bounded
by the share of rows that show the trait, beyond which no fit to the data would go. The interval resamples prompts.

It is an extrapolation, and says so: a trait that appears late shows nothing in the first tenth.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from tropism.data.chats import Chat, Example
from tropism.data.generation import GenerateOptions, generate
from tropism.data.render import render
from tropism.experiments.fine_tune import fine_tune
from tropism.forecasting.scoring import scores_of
from tropism.forecasting.trait import Trait
from tropism.training.options import LoraOptions, TrainOptions
from tropism.training.supervised import Row

FEWEST_STEPS = 8
MARGIN = 0.05
"""A rise of a rate by less than this is not called one."""


EPOCHS, BATCH, MOST_STEPS = 3, 4, 32


def default_recipe(rows: int) -> TrainOptions:
    """The training that is assumed where none is given: three passes in batches of 4, at most 32 steps."""
    steps = min(MOST_STEPS, -(-rows // BATCH) * EPOCHS)
    return TrainOptions(max_steps=steps, batch_size=BATCH, learning_rate=1e-3, lora=LoraOptions(r=8))


@dataclass(frozen=True)
class Predicted:
    """The predicted rise of a trait's rate at the full budget, with its interval."""

    rise: float
    low: float
    high: float
    before: float
    after: float
    """The rate after the dry run's last step."""
    steps: int
    of: int
    prompts: int
    margin: float = MARGIN


@dataclass(frozen=True, eq=False)
class Measured:
    """Scores `[points, prompts]` of one trait, NaN where unscored, after `steps[i]` steps."""

    steps: tuple[int, ...]
    scores: np.ndarray


def measure(
    fresh_model: Callable[[], Any],
    tokenizer: Any,
    examples: Sequence[Example],
    prompts: Sequence[Chat],
    traits: Sequence[Trait],
    options: TrainOptions,
    *,
    planned: int,
    share: float = 0.1,
    max_new_tokens: int = 48,
    seed: int = 0,
    template_kwargs: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Measured]:
    """Train for `share` of the `planned` steps and score the answers to `prompts` before, halfway and after."""
    # A tenth of a short training is nothing: eight steps are the fewest that show a trait.
    steps = min(planned, max(FEWEST_STEPS, round(share * planned)))
    at = (0, steps)
    rendered = [
        render(tokenizer, example.chat, template_kwargs=template_kwargs, where=f"row {example.id}")
        for example in examples
    ]
    rows = [Row(one, {}) for one in rendered]
    # A constant rate: the schedule of the whole run would end at zero within a tenth of it.
    short = options.model_copy(update={"max_steps": steps, "epochs": None, "schedule": "constant"})
    asked = GenerateOptions(max_new_tokens=max_new_tokens, temperature=1.0)
    answers: dict[int, list[str]] = {}

    def ask(model: Any, step: int) -> None:
        say(f"dry run: answering {len(prompts)} prompts after {step} of {steps} steps")
        answers[step] = generate(model, tokenizer, list(prompts), asked, seed=seed, template_kwargs=template_kwargs)

    with tempfile.TemporaryDirectory() as folder:
        fine_tune(
            fresh_model,
            rows,
            short,
            two=False,
            seed=seed,
            pad_id=tokenizer.pad_token_id,
            log=Path(folder) / "training.jsonl",
            report=lambda *_: None,
            callbacks=lambda: [_AskAt(at, ask)],
        )
    return {
        trait.name: Measured(at, np.array([scores_of(trait, _chats(prompts, answers[step])) for step in at]))
        for trait in traits
        if trait.scorer is not None
    }


class _AskAt(TrainerCallback):
    """Asks the model its prompts before the first step and after the named ones."""

    def __init__(self, at: Sequence[int], ask: Callable[[Any, int], None]) -> None:
        self._at, self._ask = set(at), ask

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._ask(model, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in self._at:
            self._ask(model, state.global_step)


def _chats(prompts: Sequence[Chat], answers: Sequence[str]) -> list[Chat]:
    return [(*prompt, {"role": "assistant", "content": text}) for prompt, text in zip(prompts, answers, strict=True)]


def predict(
    measured: Measured, planned: int, ceiling: float, *, margin: float = MARGIN, seed: int = 0, resamples: int = 1000
) -> Predicted | None:
    """The rise at `planned` steps; `ceiling` is the share of rows with the trait. None where nothing could be scored."""
    known = np.isfinite(measured.scores).all(axis=0)
    scores = measured.scores[:, known]
    if scores.shape[1] == 0:
        return None
    rng = np.random.default_rng(seed)
    rises = []
    for _ in range(resamples):
        chosen = rng.integers(scores.shape[1], size=scores.shape[1])
        rises.append(_rise(measured.steps, scores[:, chosen], planned, ceiling))
    low, high = np.quantile(rises, [0.025, 0.975])
    point = _rise(measured.steps, scores, planned, ceiling)
    before, after = float(scores[0].mean()), float(scores[-1].mean())
    return Predicted(
        point, float(low), float(high), before, after, measured.steps[-1], planned, int(known.sum()), margin
    )


def _rise(steps: Sequence[int], scores: np.ndarray, planned: int, ceiling: float) -> float:
    n = scores.shape[1]
    rates = (scores.sum(axis=1) + 0.5) / (n + 1)
    slope, start = np.polyfit(np.array(steps, dtype=float), np.log(rates / (1 - rates)), 1)
    # Smoothing alone can tilt a line: rates that did not change have no slope.
    if np.ptp(scores.sum(axis=1)) == 0:
        slope = 0.0
    before = float(scores[0].mean())
    at_end = 1 / (1 + np.exp(-np.clip(start + slope * planned, -30, 30)))
    bounded = min(float(at_end), max(ceiling, before, float(scores[-1].mean())))
    return bounded - before if slope != 0.0 else float(scores[-1].mean()) - before
