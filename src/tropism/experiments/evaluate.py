"""Evaluates one run from its adapter on disk: generate, score, record every sample."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tropism import models
from tropism.data.chats import Example
from tropism.data.generation import generate
from tropism.errors import RunFailed
from tropism.evals.scorers.base import AnyScorer, ModelScorer, ResponseScorer, Sample, Score
from tropism.evals.scorers.registry import load_scorer
from tropism.experiments.analyses import Measurement
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.progress import Progress
from tropism.interventions.routing_modes import MODES, ablation_mode
from tropism.interventions.two_adapters import load_adapters

ROUNDING = 1e-6
"""How far a score may lie outside the bounds of its scorer, by float arithmetic alone."""
RETAINED = {"full": ["retain", "forget"], "forget_ablated": ["retain"], "retain_ablated": ["forget"]}


@dataclass(frozen=True)
class Trained:
    """A trained adapter on disk, or None for the untrained model; `two` where it is a retain and a forget adapter."""

    adapter: Path | None
    two: bool

    @property
    def modes(self) -> tuple[str, ...]:
        return MODES if self.two else ("full",)

    def load(self, model: Any) -> Any:
        """The model with the adapter live, to be scored."""
        if self.adapter is None:
            return model
        loaded = (
            load_adapters(model, self.adapter, trainable=False)
            if self.two
            else models.load_adapter(model, self.adapter)
        )
        return loaded.eval()

    def merged(self, model: Any, mode: str) -> Any:
        """The model with the adapters of a mode merged into its weights, to generate fast."""
        if self.adapter is None:
            return model
        loaded: Any = self.load(model)
        return loaded.merge_and_unload(adapter_names=RETAINED[mode]) if self.two else loaded.merge_and_unload()


def evaluate(
    experiment: ExperimentSpec,
    trained: Trained,
    fresh_model: Callable[[], Any],
    tokenizer: Any,
    data: Callable[[str], list[Example]],
    path: Path,
    identity: Mapping[str, Any],
    progress: Progress,
) -> list[Measurement]:
    """Every metric on every set it is asked on, in every mode; writes `responses.jsonl`; returns the means.

    The guard is not attached: what is measured is the adapter alone.
    """
    scorers = {name: load_scorer(m.scorer, m.options()) for name, m in experiment.measure.items()}
    asked = {name for m in experiment.measure.values() for name in m.on}
    sets = {name: data(name) for name in experiment.data if name in asked}
    records: list[dict[str, Any]] = []
    measurements: list[Measurement] = []
    scoring: Any = None
    for mode in trained.modes:
        responses: dict[str, list[str]] = {}
        generating = [name for name in sets if _generates(experiment, scorers, name)]
        if generating:
            model = for_generation(experiment, trained.merged(fresh_model(), mode))
            for name in generating:
                prompts = [example.prompt for example in sets[name]]
                responses[name] = generate(
                    model, tokenizer, prompts, experiment.generate, template_kwargs=experiment.template_kwargs,
                    report=partial(progress.phase, f"answering {name}"),
                )  # fmt: skip
            del model
        for name, examples in sets.items():
            samples = [_sample(e, responses[name][i] if name in responses else None) for i, e in enumerate(examples)]
            scores: dict[str, list[Score]] = {}
            for metric, scorer in scorers.items():
                if name not in experiment.measure[metric].on:
                    continue
                if isinstance(scorer, ResponseScorer):
                    scores[metric] = [scorer.score(sample) for sample in samples]
                    continue
                progress.phase(f"scoring {metric} on {name}", 0, len(examples))
                scoring = scoring if scoring is not None else trained.load(fresh_model())
                reference = samples if _reads_generated(scorer) else [_sample(e, e.response or "") for e in examples]
                if trained.two:
                    with ablation_mode(scoring, mode):
                        scores[metric] = scorer.score_all(scoring, tokenizer, reference)
                else:
                    scores[metric] = scorer.score_all(scoring, tokenizer, reference)
            for metric, values in scores.items():
                measurements.append(_mean(mode, name, metric, values, scorers[metric].bounds))
            records += _records(identity, mode, name, examples, responses.get(name), scores)
    with (path / "responses.jsonl").open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    return measurements


def for_generation(experiment: ExperimentSpec, model: Any) -> Any:
    """The model in the precision that the experiment generates in."""
    wish = experiment.generate.dtype
    device = str(next(model.parameters()).device)
    half = models.computes_bfloat16(device) if wish == "auto" else wish == "bfloat16"
    return model.to(torch.bfloat16) if half else model if wish == "auto" else model.to(torch.float32)


def _generates(experiment: ExperimentSpec, scorers: Mapping[str, AnyScorer], name: str) -> bool:
    return any(
        name in experiment.measure[metric].on and (isinstance(scorer, ResponseScorer) or _reads_generated(scorer))
        for metric, scorer in scorers.items()
    )


def _reads_generated(scorer: AnyScorer) -> bool:
    return isinstance(scorer, ModelScorer) and scorer.text == "generated"


def _sample(example: Example, response: str | None) -> Sample:
    return Sample(example.id, example.prompt, response or "", example.target, example.labels)


def _mean(mode: str, name: str, metric: str, scores: list[Score], bounds: tuple[float, float] | None) -> Measurement:
    values = [score.value for score in scores if score.value is not None]
    if not values:
        # nothing could be scored: there is no mean, and a missing row says so where a zero would lie
        reasons = {str(score.unscored) for score in scores}
        raise RunFailed(
            f"metric {metric!r} on {name!r}: none of {len(scores)} samples could be scored ({'; '.join(sorted(reasons)[:3])})"
        )
    if bounds is not None:
        wrong = [value for value in values if not bounds[0] - ROUNDING <= value <= bounds[1] + ROUNDING]
        if wrong:
            raise RunFailed(
                f"metric {metric!r} on {name!r}: its scorer says that scores lie between {bounds[0]:g} and {bounds[1]:g}, "
                f"found {wrong[0]!r}; correct the scorer's `bounds`"
            )
    return Measurement(
        name, metric, statistics.fmean(values), len(values), len(scores) - len(values), mode,
        per_response=True, bounds=bounds,
    )  # fmt: skip


def _records(
    identity: Mapping[str, Any],
    mode: str,
    name: str,
    examples: list[Example],
    responses: list[str] | None,
    scores: Mapping[str, list[Score]],
) -> Iterator[dict[str, Any]]:
    for i, example in enumerate(examples):
        yield {
            **identity, "mode": mode, "eval_set": name, "id": example.id, "prompt": list(example.prompt),
            "response": responses[i] if responses is not None else None, "target": example.target, "labels": dict(example.labels),
            "scores": {
                metric: {"value": s[i].value, "unscored": s[i].unscored, "explanation": s[i].explanation}
                for metric, s in scores.items()
            },
        }  # fmt: skip
