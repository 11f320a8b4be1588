"""Everything about an experiment's data that can be wrong, before anything is written or trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tropism.data.chats import Example
from tropism.data.render import Rendered, render_prompts
from tropism.experiments import prepare, store
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.training_rows import training_rows
from tropism.training.options import TrainOptions
from tropism.training.supervised import Row

EvaluationSets = Callable[[str], list[Example]]


@dataclass(frozen=True)
class Checked:
    """What a check of the data found: nothing wrong, the first training chat of each condition, and what is to be said.

    `records` has for each condition and prepared adapter what became of its examples; `lines` are sentences.
    """

    samples: dict[str, Rendered]
    records: dict[str, dict[str, Any]]
    lines: list[str]


def check_data(experiment: ExperimentSpec, sets: EvaluationSets, tokenizer: Any, limit: int | None) -> Checked:
    """Load and render every set.

    Raises `DataError` for what cannot be read, rendered, learned from or held by the context of `limit` tokens, and
    `SpecError` for two conditions that the model cannot tell apart.
    """
    e = experiment
    samples: dict[str, Rendered] = {}
    records: dict[str, dict[str, Any]] = {}
    lines: list[str] = []

    def rows(examples: Sequence[Example], options: TrainOptions, what: str) -> list[Row]:
        made, record = training_rows(
            examples, tokenizer, e.template_kwargs, limit, what, options.max_length, options.overflow
        )
        records[what] = record.plain()
        lines.extend(f"{what}: {line}" for line in record.lines(options.max_length))
        return made

    for condition in e.conditions:
        examples = prepare.training_examples(e, condition, e.seeds[0], lines.append)
        samples[condition] = rows(examples, e.train_options(condition), f"condition {condition}")[0].rendered
    prepare.check_distinct(e, samples)
    for name, spec in e.adapters.items():
        examples = prepare.load_data(spec.data, e.seeds[0], spec.system_prompt, lines.append)
        rows(examples, e.train_options(adapter=name), f"adapter {name}")
    for name in e.data:
        if name != "train":
            _check_prompts(e, name, sets(name), tokenizer, limit)
    return Checked(samples, records, list(dict.fromkeys(lines)))


def data_hashes(experiment: ExperimentSpec, sets: EvaluationSets) -> dict[str, str]:
    """Per set a hash of its examples as the baseline's first seed sees them."""
    held = {name: sets(name) for name in experiment.data if name != "train"}
    held["train"] = prepare.training_examples(experiment, experiment.baseline, experiment.seeds[0])
    return {
        name: store.digest([[x.id, list(x.content), x.target] for x in examples]) for name, examples in held.items()
    }


def _check_prompts(
    e: ExperimentSpec, name: str, examples: Sequence[Example], tokenizer: Any, limit: int | None
) -> None:
    rendered = list(
        render_prompts(
            tokenizer,
            (x.prompt for x in examples),
            template_kwargs=e.template_kwargs,
            names=(f"{name}, {x.id}" for x in examples),
        )
    )
    room = None if limit is None else limit - e.generate.max_new_tokens
    prepare.check_lengths(rendered, [x.id for x in examples], room, f"evaluation set {name} (with its response)")
