"""A watch on a small probe set in anyone's trainer: the last good weights are kept, and training stops with the reason."""

import logging
import math
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tropism.activations.mode import evaluation_mode
from tropism.data.chats import Chat
from tropism.data.generation import GenerateOptions, generate
from tropism.data.render import render
from tropism.directions.artifact import Directions
from tropism.directions.stream import activations
from tropism.errors import DataError, UsageError
from tropism.evals.scorers.base import ResponseScorer, Sample
from tropism.site import Site

log = logging.getLogger(__name__)
LAST_GOOD = "last_good"


class DriftAlarm(TrainerCallback):
    """Reads a probe set every few steps; past `limit` it stops training, with the last good weights on disk.

    With `directions`, the reading is how far the model's activations on the probe chats have moved along them since training
    began, in units of the directions' own length:

        drift = mean over sites of ⟨h̄ − h̄₀, v⟩ / ‖v‖²,

    `h̄ [d]` the mean over chats of each chat's mean over response tokens: 0 at the first step, 1 where the model has moved as far
    as the examples that the direction was found from are apart. With `scorer`, it is the mean score of the model's own greedy
    answers to the probe prompts: how often it shows the trait. Reading changes no weight, gradient, mode or random state; guards
    that act in training only are off.

    Args:
        probe_set: chats, a dozen or two; with `directions` each ends in a response.
        directions: one vector a site.
        limit: the reading above which training stops.
        scorer: scores answers instead of reading activations; exactly one of the two is given.
        every: optimiser steps between readings.
        tokenizer: by default the trainer's `processing_class`.
        folder: where the last good weights go; by default `last_good` in the trainer's `output_dir`.

    Attributes: `readings`, pairs of step and value; `last_good`, the folder, or None; `reason`, why it stopped, or empty.

    Raises:
        UsageError: neither or both of `directions` and `scorer`, several vectors at a site, a limit that is not finite, no
            tokenizer, probe chats without a response.

    The weights are saved with `save_pretrained` (of a PEFT model the adapter), by the first process alone; models that are
    sharded over processes (FSDP, DeepSpeed) are not supported.

    ```python
    alarm = tp.DriftAlarm(chats, directions, limit=0.3)
    trainer.add_callback(alarm)
    trainer.train()
    alarm.reason  # "drift 0.34 at step 40, over the limit of 0.30; …"
    ```
    """

    def __init__(
        self,
        probe_set: Sequence[Chat],
        directions: Directions | None = None,
        limit: float = 0.3,
        *,
        scorer: ResponseScorer | None = None,
        every: int = 10,
        tokenizer: Any = None,
        folder: str | Path | None = None,
        batch_size: int = 16,
        max_new_tokens: int = 48,
    ) -> None:
        if (directions is None) == (scorer is None):
            raise UsageError("DriftAlarm: give directions to watch, or a scorer; exactly one of the two")
        if not math.isfinite(limit):
            raise UsageError(f"DriftAlarm.limit must be finite, found {limit!r}")
        if every < 1:
            raise UsageError(f"DriftAlarm.every must be at least 1, found {every!r}")
        if not probe_set:
            raise UsageError("DriftAlarm.probe_set is empty; give a dozen chats")
        several = [site for site, rows in directions.vectors.items() if len(rows) > 1] if directions else []
        if several:
            raise UsageError(f"DriftAlarm watches one vector a site, found several at {several[0]}; choose one")
        self.probe_set, self.directions, self.limit, self.scorer, self.every = (
            list(probe_set),
            directions,
            limit,
            scorer,
            every,
        )
        self.readings: list[tuple[int, float]] = []
        self.last_good: Path | None = None
        self.reason = ""
        self._tokenizer, self._folder = tokenizer, None if folder is None else Path(folder)
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens
        self._before: dict[Site, Any] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """Read where the model stands before it is trained, and keep it."""
        self._tokenizer = self._tokenizer or processing_class
        if self._tokenizer is None:
            raise UsageError("DriftAlarm: the trainer has no processing_class; give DriftAlarm(tokenizer=...)")
        if model is None:
            raise UsageError("DriftAlarm: the trainer gave no model to on_train_begin")
        # A resumed training is measured from where the first one began.
        if self.directions is not None and not self._before:
            self._before = self._means(model)
        self.reason = ""
        self._look(args, state, control, model)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Read every few steps; keep the weights, or stop."""
        # A trainer that was stopped before its first step takes that step all the same.
        if model is not None and not self.reason and state.global_step % self.every == 0:
            self._look(args, state, control, model)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Put the last reading beside the loss."""
        if logs is not None and self.readings and "loss" in logs:
            logs["drift_alarm"] = self.readings[-1][1]

    def read(self, model: nn.Module) -> float:
        """The reading now."""
        return self._drift(model) if self.directions is not None else self._rate(model)

    def _look(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        value = self.read(model)
        self.readings.append((state.global_step, value))
        if value <= self.limit:
            if state.is_world_process_zero:
                self._keep(model, self._folder or Path(str(args.output_dir)) / LAST_GOOD)
            return
        what = "drift" if self.directions is not None else "rate"
        kept = (
            f"the last good weights are in {self.last_good}"
            if self.last_good
            else "no weights were good, and none are kept"
        )
        self.reason = f"{what} {value:.2f} at step {state.global_step}, over the limit of {self.limit:.2f}; {kept}"
        log.warning("training stops: %s", self.reason)
        control.should_training_stop = True

    def _keep(self, model: Any, target: Path) -> None:
        """Write the weights, whole or not at all, in the place of those before."""
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        model.save_pretrained(str(partial))
        if target.is_dir():
            shutil.rmtree(target)
        partial.replace(target)
        self.last_good = target

    def _means(self, model: nn.Module) -> dict[Site, Any]:
        """Mean over chats of each chat's mean response activation, float64 `[d]`, at every site."""
        assert self.directions is not None
        rendered = [render(self._tokenizer, chat, where=f"probe {i}") for i, chat in enumerate(self.probe_set)]
        try:
            with evaluation_mode(model):
                found = activations(model, rendered, list(self.directions.sites), "response", self._batch_size)
        except DataError as error:
            raise UsageError(f"DriftAlarm.probe_set: {error}") from None
        return {site: rows.double().mean(dim=0) for site, rows in found.items()}

    def _drift(self, model: nn.Module) -> float:
        assert self.directions is not None
        now, moved = self._means(model), []
        for site, rows in self.directions.vectors.items():
            v = rows[0].double()
            moved.append(float((now[site] - self._before[site]) @ v / (v @ v)))
        return sum(moved) / len(moved)

    def _rate(self, model: nn.Module) -> float:
        assert self.scorer is not None
        prompts = [tuple(chat[: _asked(chat)]) for chat in self.probe_set]
        options = GenerateOptions(max_new_tokens=self._max_new_tokens, batch_size=self._batch_size)
        answers = generate(model, self._tokenizer, prompts, options)
        scores = [
            self.scorer.score(Sample(str(i), prompt, text))
            for i, (prompt, text) in enumerate(zip(prompts, answers, strict=True))
        ]
        known = [score.value for score in scores if score.value is not None]
        if not known:
            raise UsageError(f"DriftAlarm: none of {len(scores)} answers could be scored: {scores[0].unscored}")
        return sum(known) / len(known)


def _asked(chat: Chat) -> int:
    """How many messages come before the response: all where the chat ends with a question."""
    return len(chat) - 1 if chat[-1]["role"] == "assistant" else len(chat)
