"""Runs an experiment: for each condition and seed, chats → rows → Trainer with the guard → adapter → evaluation."""

import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model

from tropism import models
from tropism.data.chats import Example
from tropism.data.render import render
from tropism.errors import GuardNotInForce, RunFailed, SpecError
from tropism.experiments import checks, environment, prepare, store
from tropism.experiments import directions as directions_step
from tropism.experiments.analyses import Study, TrainedRun, load_analyses
from tropism.experiments.evaluate import Trained, evaluate
from tropism.experiments.file import guards
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.progress import Progress
from tropism.experiments.start import load_base, start_model
from tropism.experiments.store import Folder, RunKey
from tropism.interventions.base import Intervention
from tropism.interventions.two_adapters import save_adapters, two_adapters
from tropism.interventions.weights import adapter_norm, learned_norm
from tropism.names import BASE
from tropism.training.options import LoraOptions, TrainOptions
from tropism.training.supervised import Row, train


def plan(experiment: ExperimentSpec, only: Sequence[str] | None = None) -> list[RunKey]:
    """Every run of an experiment: the untrained model, then all conditions seed by seed.

    Raises `SpecError` where `only` names a condition that is not there.
    """
    unknown = sorted(set(only or ()) - set(experiment.conditions))
    if unknown:
        raise SpecError(
            f"--only: no condition is called {unknown[0]!r}; defined are {', '.join(experiment.conditions)}"
        )
    chosen = [name for name in experiment.conditions if not only or name in only]
    return [RunKey(BASE, None), *(RunKey(name, seed) for seed in experiment.seeds for name in chosen)]


def run(
    experiment: ExperimentSpec | str | Path,
    out: str | Path,
    *,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> pd.DataFrame:
    """Run what of an experiment is not finished yet, and return its results, one row a measurement.

    Args:
        experiment: an `Experiment`, or the path of its file.
        out: its folder; runs finished there before are kept, and an interrupted run is begun again.
        only: names of conditions, to run these alone.
        progress: is told what goes on.
        command: what a reader of the report types to make it again.

    A run whose loss is not finite, or whose guard was not in force, is marked failed with its reason, and the others go
    on. Raises `UsageError` for what its caller must mend.
    """
    if not isinstance(experiment, ExperimentSpec):
        experiment = Experiment.load(experiment)
    progress = progress or Progress()
    everything = plan(experiment)
    wanted = plan(experiment, only)
    source = models.resolve(experiment.model, revision=experiment.revision)
    folder = Folder.of(out, experiment)
    public = source.public()
    todo = [key for key in wanted if not folder.is_done(key, store.evaluate_identity(experiment, public, key))]
    progress.plan([str(key) for key in todo], len(wanted) - len(todo))
    if source.note:
        progress.say(source.note)
    if todo:
        _Runner(experiment, folder, source, progress, command).run(todo)
        environment.finish(folder)
    else:
        folder.claim(experiment)
    results = folder.collect(experiment, everything)
    if todo or not (folder.path / "report.html").is_file():
        _summarise(experiment, folder, source, results, progress)
    return results


class _Runner:
    """The runs of one call, which share a tokenizer, directions and prepared adapters."""

    def __init__(
        self, experiment: ExperimentSpec, folder: Folder, source: models.Source, progress: Progress, command: str
    ) -> None:
        self.experiment, self.folder, self.source, self.progress = experiment, folder, source, progress
        self.public = source.public()
        self.data = _EvaluationSets(experiment)
        model, self.tokenizer = self._load()
        self.device = str(next(model.parameters()).device)
        self.limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        del model
        samples = checks.check_data(experiment, self.data, self.tokenizer, self.limit)
        # Nothing was written up to here: what a user has to mend leaves no trace.
        folder.claim(experiment)
        shown = {name: {"text": r.text, "input_ids": r.input_ids} for name, r in samples.items()}
        folder.write("rendered.json", environment.dump(shown))
        hashes = checks.data_hashes(experiment, self.data)
        environment.begin(folder, environment.describe(self.device, self.public, hashes, command))
        self.adapters = {name: self._adapter(name) for name in experiment.adapters}
        start = self.fresh_model()
        self.directions = directions_step.prepare(experiment, folder, self.public, start, self.tokenizer, progress)
        self.parameter_directions = self._parameter_directions()
        self.study = Study(
            experiment, folder.path, self.tokenizer, self.fresh_model, self.data,
            partial(prepare.training_examples, experiment), self.directions, self.parameter_directions, progress.say,
        )  # fmt: skip
        self.analyses = load_analyses(experiment)
        for analysis in self.analyses.values():
            analysis.before(self.study)

    def run(self, keys: Sequence[RunKey]) -> None:
        for index, key in enumerate(keys, start=1):
            began = time.monotonic()
            self.progress.start(str(key), index, len(keys))
            try:
                self._one(key)
            except (RunFailed, GuardNotInForce) as error:
                self.folder.mark_failed(key, f"{type(error).__name__}: {error}")
                self.progress.finish(str(key), time.monotonic() - began, f"failed: {error}")
            else:
                self.progress.finish(str(key), time.monotonic() - began, "done")
            # Now and not at the end, so that a report can be drawn of what an interrupted or running experiment has.
            self.folder.collect(self.experiment, plan(self.experiment))

    def fresh_model(self) -> Any:
        """The model that every condition starts from, loaded anew."""
        return start_model(self.experiment, self.folder, self.source)[0]

    def _one(self, key: RunKey) -> None:
        began = time.monotonic()
        train_id = store.train_identity(self.experiment, self.public, key)
        path = self.folder.run_path(key)
        kept = self.folder.begin(key, train_id)
        adapter = None if key.condition == BASE else path / "adapter"
        if adapter is not None and not kept:
            assert key.seed is not None
            self._train(key.condition, key.seed, path)
            self.folder.mark_trained(key, train_id)
        trained = Trained(adapter, adapter is not None and self._two(key.condition))
        identity = {"condition": key.condition, "seed": key.seed}
        rows = evaluate(
            self.experiment, trained, self.fresh_model, self.tokenizer, self.data, path, identity, self.progress
        )
        measuring = [analysis for analysis in self.analyses.values() if analysis.per_run]
        if measuring:
            model = trained.load(self.fresh_model())
            for analysis in measuring:
                rows += list(analysis.measure(TrainedRun(self.study, key.condition, key.seed, path, model)))
        self.folder.write_measurements(key, rows)
        identity_now = store.evaluate_identity(self.experiment, self.public, key)
        self.folder.mark_done(key, train_id, identity_now, time.monotonic() - began)

    def _train(self, condition: str, seed: int, path: Path) -> None:
        spec = self.experiment.conditions[condition]
        examples = prepare.training_examples(self.experiment, condition, seed)
        resources = guards.Resources(
            self.directions, self.parameter_directions, self.adapters, seed, partial(self._mean_activations, examples)
        )
        model = self._trained_alike(condition, seed, path)
        if model is None:
            model = self._fit(condition, seed, path, examples, guards.build_guard(spec.guard, resources))
        after = guards.build_after(spec.after, replace(resources, norm_of=partial(self._norm_of, model, seed)))
        # An edit of the weights is in the adapter that is saved while it is attached.
        with after.attach(model) if after is not None else nullcontext():
            save(model, path / "adapter", two=self._two(condition))

    def _trained_alike(self, condition: str, seed: int, path: Path) -> Any | None:
        """What this condition would train, from the finished run of another that differs by the edit alone; its log too."""
        other = store.trained_alike(self.experiment, self.public, condition)
        if other is None:
            return None
        key = RunKey(other, seed)
        identity = store.train_identity(self.experiment, self.public, key)
        if self.folder.state(key) is None or self.folder.trained(key) != identity:
            return None
        source = self.folder.run_path(key)
        shutil.copyfile(source / "training.jsonl", path / "training.jsonl")
        return Trained(source / "adapter", self._two(condition)).load(self.fresh_model())

    def _fit(
        self, condition: str, seed: int, path: Path, examples: Sequence[Example], guard: Intervention | None
    ) -> Any:
        """The model with its adapter, trained."""
        options = self.experiment.train_options(condition)
        rows = self._rows(examples, options, f"condition {condition}")
        callbacks = [
            callback for analysis in self.analyses.values()
            for callback in analysis.callbacks(self.study, condition, seed, path / "training.jsonl")
        ]  # fmt: skip
        with isolated_randomness(seed):
            model = with_adapters(self.fresh_model(), options, two=self._two(condition))
            train(
                model, rows, options, pad_id=self.tokenizer.pad_token_id, seed=seed, log=path / "training.jsonl", guard=guard,
                report=lambda step, of, logs: self.progress.phase("training", step, of, logs), callbacks=callbacks,
            )  # fmt: skip
        shutil.rmtree(path / "trainer", ignore_errors=True)
        return model

    def _adapter(self, name: str) -> Path:
        """A prepared adapter, trained once on the untouched base model with the first seed."""
        spec = self.experiment.adapters[name]
        path = self.folder.path / "adapters" / name
        identity = store.adapter_identity(self.experiment, self.public, name)
        key = RunKey(f"adapters/{name}", None)
        if self.folder.begin(key, identity):
            return path / "adapter"
        self.progress.say(f"training the adapter {name!r}")
        options = self.experiment.train_options(adapter=name)
        examples = prepare.load_data(spec.data, self.experiment.seeds[0], spec.system_prompt)
        rows = self._rows(examples, options, f"adapter {name}")
        with isolated_randomness(self.experiment.seeds[0]):
            model = with_adapters(self._load()[0], options, two=False)
            train(
                model, rows, options, pad_id=self.tokenizer.pad_token_id, seed=self.experiment.seeds[0],
                log=path / "training.jsonl",
                report=lambda step, of, logs: self.progress.phase(f"training adapter {name}", step, of, logs),
            )  # fmt: skip
        shutil.rmtree(path / "trainer", ignore_errors=True)
        save(model, path / "adapter", two=False)
        self.folder.mark_trained(key, identity)
        return path / "adapter"

    def _parameter_directions(self) -> dict[str, Any]:
        return {
            name: guards.build_parameter_directions(options, self.adapters)
            for name, options in self.experiment.parameter_directions.items()
        }

    def _rows(self, examples: Sequence[Example], options: TrainOptions, what: str) -> list[Row]:
        kwargs = self.experiment.template_kwargs
        return prepare.rows_of(examples, self.tokenizer, kwargs, self.limit, what, options.max_length)

    def _norm_of(self, model: Any, seed: int, condition: str) -> float:
        """What another condition learned with this seed; at most what `model` did: to shrink is not to grow."""
        key = RunKey(condition, seed)
        if self.folder.trained(key) != store.train_identity(self.experiment, self.public, key):
            raise RunFailed(
                f"it is to be as large as {key}, which is not trained as the file says; run that condition first"
            )
        return min(adapter_norm(self.folder.run_path(key) / "adapter"), learned_norm(model))

    def _two(self, condition: str) -> bool:
        options = self.experiment.train_options(condition)
        routed = any(
            name == "gradient_routing" for name, _ in guards.parts(self.experiment.conditions[condition].guard)
        )
        return routed or options.forget_lora is not None

    def _mean_activations(self, examples: Sequence[Example], directions: Any) -> Any:
        from tropism.activations.capture import mean_activations
        from tropism.data.batches import batches

        model = self.fresh_model()
        rendered = [
            render(self.tokenizer, e.chat, template_kwargs=self.experiment.template_kwargs) for e in examples[:64]
        ]
        inputs = (batch.inputs for batch in batches(rendered, 8, device=self.device))
        return mean_activations(model, inputs, directions.sites)

    def _load(self) -> tuple[Any, Any]:
        return load_base(self.experiment, self.source)


def with_adapters(model: Any, options: TrainOptions, *, two: bool) -> Any:
    """The model with one trainable LoRA adapter, or with `retain` and `forget`."""
    if two:
        return two_adapters(model, _lora(options.lora), _lora(options.forget_lora or options.lora))
    return get_peft_model(model, _lora(options.lora))


def save(model: Any, path: Path, *, two: bool) -> None:
    """Write the adapter (or both) in PEFT's format."""
    if two:
        save_adapters(model, path)
    else:
        model.save_pretrained(str(path), save_embedding_layers=False)


@contextmanager
def isolated_randomness(seed: int) -> Iterator[None]:
    """Seed every global generator inside, and leave the caller's as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _lora(options: LoraOptions) -> LoraConfig:
    return LoraConfig(
        r=options.r,
        lora_alpha=2 * options.r if options.alpha is None else options.alpha,
        lora_dropout=options.dropout,
        target_modules=options.target_modules,
        task_type="CAUSAL_LM",
    )


class _EvaluationSets:
    """The evaluation sets, loaded once. Their seed is fixed: every run of an experiment is asked the same questions."""

    def __init__(self, experiment: ExperimentSpec) -> None:
        self._experiment = experiment
        self._loaded: dict[str, list[Example]] = {}

    def __call__(self, name: str) -> list[Example]:
        if name not in self._loaded:
            self._loaded[name] = prepare.load_data(self._experiment.data[name], 0)
        return self._loaded[name]


def _summarise(
    experiment: ExperimentSpec, folder: Folder, source: models.Source, results: pd.DataFrame, progress: Progress
) -> None:
    from tropism import reports

    study: Mapping[str, Any] = load_analyses(experiment)
    if study:
        _, tokenizer = models.load_source(replace(source, note=""), device=experiment.device, dtype=experiment.dtype)
        context = Study(
            experiment, folder.path, tokenizer, lambda: None, _EvaluationSets(experiment),
            partial(prepare.training_examples, experiment), say=progress.say,
        )  # fmt: skip
        for analysis in study.values():
            section = analysis.summarise(context, results)
            if section is not None:
                section.save(folder.path)
    progress.say("drawing the report")
    reports.build(folder.path)
