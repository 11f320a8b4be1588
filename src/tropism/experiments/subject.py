"""Who is evaluated in a run: how its model is loaded, where it answers, and which metrics it cannot have."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from tropism import models
from tropism.adapters.merge import merge_adapters
from tropism.adapters.whole import is_whole, load_whole
from tropism.errors import RunFailed
from tropism.evals.judges.endpoint import Endpoint
from tropism.evals.scorers.base import AnyScorer, ModelScorer
from tropism.experiments import start
from tropism.experiments.file import guards
from tropism.experiments.file.check import endpoint_of
from tropism.experiments.prepared import Prepared
from tropism.experiments.store import RunKey
from tropism.interventions.routing_modes import MODES
from tropism.interventions.two_adapters import load_adapters

RETAINED = {"full": ["retain", "forget"], "forget_ablated": ["retain"], "retain_ablated": ["forget"]}


@dataclass(frozen=True)
class Trained:
    """A trained adapter on disk, or None for a model without one; `two` where it is a retain and a forget adapter."""

    adapter: Path | None
    two: bool

    @property
    def modes(self) -> tuple[str, ...]:
        return MODES if self.two else ("full",)

    def load(self, model: Any) -> Any:
        """The model with the adapter live, to be scored."""
        if self.adapter is None:
            return model
        if is_whole(self.adapter):
            return load_whole(model, self.adapter).eval()
        loaded = (
            load_adapters(model, self.adapter, trainable=False)
            if self.two
            else models.load_adapter(model, self.adapter)
        )
        return loaded.eval()

    def merged(self, model: Any, mode: str) -> Any:
        """The model with the adapters of a mode merged into its weights, to generate fast; over few bits they act beside."""
        if self.adapter is None:
            return model
        if is_whole(self.adapter):
            return self.load(model)
        if models.is_quantized(model):
            loaded = self.load(model)
            if self.two:
                loaded.base_model.set_adapter(RETAINED[mode], inference_mode=True)
            return loaded
        return merge_adapters(self.load(model), RETAINED[mode] if self.two else None)


@dataclass(frozen=True)
class Subject:
    """What answers in a run: a trained adapter, or one that was there, a whole model, or a model behind an endpoint."""

    trained: Trained
    fresh_model: Callable[[], Any]
    """Loads the model that the adapter goes onto, or the whole model itself."""
    tokenizer: Any
    base: Callable[[], tuple[Any, Any]] | None = None
    """The model that metrics compare with, and its tokenizer, where it is not this one without its adapters."""
    endpoint: Endpoint | None = None
    """Where it answers, in the place of a model here."""
    to_merge: Callable[[], Any] | None = None
    """Gives the model that adapters are merged into to generate; by default `fresh_model`."""
    source: str = ""
    """Where the base model lies, for an engine that loads it itself."""

    def lacks(self, scorer: AnyScorer) -> str:
        """Why this metric cannot be taken of it; empty where it can."""
        runs = scorer.runs if isinstance(scorer, ModelScorer) else "nothing"
        if self.endpoint is not None and runs in ("evaluated", "both"):
            return "it reads the model itself, which is behind an endpoint"
        if self.base is not None and self.trained.adapter is None and runs == "both":
            return "it compares a model with itself without its adapters, and this is a whole model"
        return ""


def subject_of(prepared: Prepared, condition: str, adapter: Path | None, two: bool) -> Subject:
    """Return who is evaluated for a condition: what was trained for it lies in `adapter`, None for the untrained model."""
    return replace(_subject_of(prepared, condition, adapter, two), source=str(prepared.source.path))


def subject_of_run(prepared: Prepared, key: RunKey) -> Subject:
    """Return who is evaluated in a run; the adapter that was just trained is read again from disk."""
    if key.seed is None:
        return subject_of(prepared, key.condition, None, False)
    adapter = prepared.folder.trained(key)
    if adapter.flaw:
        raise RunFailed(f"the adapter that was just written cannot be read again: {adapter.flaw}")
    path = prepared.folder.run_path(key) / "adapter"
    return subject_of(prepared, key.condition, path, trains_two(prepared, key.condition))


def trains_two(prepared: Prepared, condition: str) -> bool:
    """Whether a condition trains the two adapters `retain` and `forget`."""
    guarded = guards.parts(prepared.experiment.conditions[condition].guard)
    routed = any(name == "gradient_routing" for name, _ in guarded)
    return routed or prepared.experiment.train_options(condition).forget_lora is not None


def _subject_of(prepared: Prepared, condition: str, adapter: Path | None, two: bool) -> Subject:
    experiment = prepared.experiment
    spec = experiment.conditions.get(condition)
    if spec is None or spec.trains:
        return Subject(Trained(adapter, two), prepared.fresh_model, prepared.tokenizer, to_merge=prepared.held.to_merge)
    base = cache(lambda: (prepared.fresh_model(), prepared.tokenizer))
    if spec.adapter is not None:
        there = start.intact_adapter(prepared.folder, spec.adapter)
        if experiment.start_from is None:
            # The adapter, switched off, leaves the very model that the others are compared with.
            return Subject(
                Trained(there, False), prepared.held.base, prepared.tokenizer, to_merge=prepared.held.to_merge
            )
        return Subject(Trained(there, False), prepared.held.base, prepared.tokenizer, base)
    if spec.model is not None:
        tokenizer = start.tokenizer_of_arm(experiment, condition)
        return Subject(Trained(None, False), partial(start.load_arm, experiment, condition), tokenizer, base)
    assert spec.endpoint is not None  # by check
    endpoint = endpoint_of(spec.endpoint, experiment)
    return Subject(Trained(None, False), _nothing, prepared.tokenizer, base, endpoint)


def _nothing() -> Any:
    raise AssertionError("a model behind an endpoint is not loaded")
