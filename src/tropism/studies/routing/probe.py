"""The trait rate of one run's model, however it is asked: from BOS, from a prefix, along a curve."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from peft import PeftModel

from tropism.data.collate import pad
from tropism.data.generation import GenerateOptions, continue_rendered, generate
from tropism.data.render import Rendered, render
from tropism.evals.scorers.base import ResponseScorer, Sample
from tropism.experiments.analyses import Measurement, TrainedRun
from tropism.interventions.routing_modes import MODES
from tropism.results.measurement import metric_name
from tropism.studies.checks import answer_scorer
from tropism.studies.routing.measure import prefix_prompt, responses_by_mode


class TraitProbe:
    """Measures the trait of one run's model, as it is when asked.

    Args:
        run: the trained model in its experiment.
        trait: a metric of responses, by rule or by a judge; its first evaluation set gives the prompts.
        prompts: how many of them are asked.
        max_new_tokens: of every response.
    """

    def __init__(self, run: TrainedRun, trait: str, prompts: int, max_new_tokens: int) -> None:
        experiment = run.study.experiment
        self.run = run
        self.scorer = answer_scorer(experiment, trait)
        self.eval_set = experiment.measure[trait].on[0]
        self.examples = run.study.data(self.eval_set)[:prompts]
        self.template_kwargs = experiment.template_kwargs
        self.max_new_tokens = max_new_tokens
        self.two = isinstance(run.model, PeftModel) and {"retain", "forget"} <= set(run.model.peft_config)
        """Whether the model has a retain and a forget adapter."""

    def by_mode(
        self, metric: str, eval_set: str, prompts: Sequence[Rendered], temperature: float = 0.0
    ) -> Iterator[Measurement]:
        """Measure the trait in the continuations of rendered prompts, in every mode that the model has."""
        study, seed = self.run.study, self.run.seed or 0
        options = self._generation(temperature)
        if self.two:
            texts = responses_by_mode(self.run.model, study.tokenizer, prompts, options, seed=seed)
        else:
            texts = {MODES[0]: continue_rendered(self.run.model, study.tokenizer, prompts, options, seed=seed)}
        for mode, responses in texts.items():
            values = self._scores([Sample(str(i), (), text) for i, text in enumerate(responses)])
            if not values:
                study.say(f"{self.run.condition}, {mode}: no text of {metric} could be scored, so it has no rate")
                continue
            rate, unscored = sum(values) / len(values), len(responses) - len(values)
            yield Measurement(eval_set, metric, rate, len(values), unscored, mode, bounds=self.scorer.bounds)

    def trait_rate(self) -> Mapping[str, float]:
        """Return `trait`, and how many responses were `scored`; without `trait` where none could be."""
        responses = generate(
            self.run.model,
            self.run.study.tokenizer,
            [example.prompt for example in self.examples],
            self._generation(0.0),
            template_kwargs=self.template_kwargs,
        )
        samples = []
        for example, text in zip(self.examples, responses, strict=True):
            samples.append(Sample(example.id, example.prompt, text, example.target, example.labels))
        values = self._scores(samples)
        rate = {"trait": sum(values) / len(values)} if values else {}
        return {"scored": len(values), **rate}

    def along(self, table: pd.DataFrame, column: str, metric: str) -> Iterator[Measurement]:
        """Turn a table of `trait_rate` into measurements, one per value of `column`, which is their `at`."""
        for _, part in table.groupby(column):
            at = float(part[column].iloc[0])
            found = dict(zip(part["metric"], part["value"], strict=True))
            if "trait" not in found:
                name = metric_name(metric, at)
                self.run.study.say(f"{self.run.condition}: no response of {name} could be scored, so it has no rate")
                continue
            rate, scored = found["trait"], int(found["scored"])
            unscored = len(self.examples) - scored
            yield Measurement(self.eval_set, metric, rate, scored, unscored, at=at, bounds=self.scorer.bounds)

    def prefixes(self, tokens: int) -> list[Rendered]:
        """Return the reference chats, each cut after the first `tokens` tokens of its answer."""
        tokenizer = self.run.study.tokenizer
        cut = []
        for example in self.examples:
            where = f"{self.eval_set}, {example.id}"
            rendered = render(tokenizer, example.content, template_kwargs=self.template_kwargs, where=where)
            cut.append(prefix_prompt(tokenizer, rendered, tokens))
        return cut

    def batches(self, examples: Sequence[Any], steps: int, size: int = 4) -> Iterator[dict[str, Any]]:
        """Yield one batch per step, cycling through the examples in their order."""
        tokenizer, device = self.run.study.tokenizer, next(self.run.model.parameters()).device
        rows = [render(tokenizer, e.content, template_kwargs=self.template_kwargs) for e in examples]
        for step in range(steps):
            chosen = [rows[(step * size + i) % len(rows)] for i in range(min(size, len(rows)))]
            batch = pad(chosen, tokenizer.pad_token_id)
            yield {name: values.to(device) for name, values in batch.items() if name != "position_ids"}

    def _generation(self, temperature: float) -> GenerateOptions:
        given = self.run.study.experiment.generate.greedy()
        own = {"temperature": temperature, "max_new_tokens": self.max_new_tokens, "min_new_tokens": 0}
        return GenerateOptions(**{**given.model_dump(), **own})

    def _scores(self, samples: Sequence[Sample]) -> list[float]:
        if isinstance(self.scorer, ResponseScorer):
            scores = [self.scorer.score(sample) for sample in samples]
        else:
            no_model: Any = None  # a judge's scorer runs none
            scores = self.scorer.score_all(no_model, self.run.study.tokenizer, samples)
        return [score.value for score in scores if score.value is not None]
