"""Everything about an experiment's data that can be wrong, before anything is written or trained."""

from collections.abc import Callable, Sequence
from typing import Any

from tropism.data.chats import Example
from tropism.data.render import Rendered, render
from tropism.experiments import prepare, store
from tropism.experiments.file.spec import ExperimentSpec

EvaluationSets = Callable[[str], list[Example]]


def check_data(
    experiment: ExperimentSpec, sets: EvaluationSets, tokenizer: Any, limit: int | None
) -> dict[str, Rendered]:
    """Load and render every set; returns the first training chat of each condition.

    Raises `DataError` for what cannot be read, rendered, learned from or held by the context of `limit` tokens, and
    `SpecError` for two conditions that the model cannot tell apart.
    """
    e = experiment
    samples = {}
    for condition in e.conditions:
        examples = prepare.training_examples(e, condition, e.seeds[0])
        longest = e.train_options(condition).max_length
        rows = prepare.rows_of(examples, tokenizer, e.template_kwargs, limit, f"condition {condition}", longest)
        samples[condition] = rows[0].rendered
    prepare.check_distinct(e, samples)
    for name, spec in e.adapters.items():
        examples = prepare.load_data(spec.data, e.seeds[0], spec.system_prompt)
        longest = e.train_options(adapter=name).max_length
        prepare.rows_of(examples, tokenizer, e.template_kwargs, limit, f"adapter {name}", longest)
    for name in e.data:
        if name != "train":
            _check_prompts(e, name, sets(name), tokenizer, limit)
    return samples


def data_hashes(experiment: ExperimentSpec, sets: EvaluationSets) -> dict[str, str]:
    """Per set a hash of its examples as the baseline's first seed sees them."""
    held = {name: sets(name) for name in experiment.data if name != "train"}
    held["train"] = prepare.training_examples(experiment, experiment.baseline, experiment.seeds[0])
    return {name: store.digest([[x.id, list(x.chat), x.target] for x in examples]) for name, examples in held.items()}


def _check_prompts(
    e: ExperimentSpec, name: str, examples: Sequence[Example], tokenizer: Any, limit: int | None
) -> None:
    rendered = [
        render(tokenizer, x.prompt, template_kwargs=e.template_kwargs, where=f"{name}, {x.id}") for x in examples
    ]
    room = None if limit is None else limit - e.generate.max_new_tokens
    prepare.check_lengths(rendered, [x.id for x in examples], room, f"evaluation set {name} (with its response)")
