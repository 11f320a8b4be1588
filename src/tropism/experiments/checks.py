"""Everything about an experiment's data that can be wrong, before anything is written or trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tropism.data.chats import Example
from tropism.data.leakage import Leakage, prompt_key, sentences
from tropism.data.render import Rendered, render_prompts
from tropism.errors import SpecError
from tropism.experiments import identity, prepare
from tropism.experiments.file.spec import ExperimentSpec, SearchSpec
from tropism.experiments.render_ahead import render_ahead
from tropism.experiments.rendered import RenderedSet, RenderedSets
from tropism.results.text import listed
from tropism.training.options import TrainOptions

EvaluationSets = Callable[[str], list[Example]]
MOST_NAMED = 4
"""Conditions that are named one by one where something was done to the rows of each."""


@dataclass(frozen=True)
class Sizes:
    """How long the rendered rows of a training set are, in tokens."""

    rows: int
    tokens: int
    longest: int
    learned: int


@dataclass(frozen=True)
class Checked:
    """What a check of the data found, where nothing is wrong.

    `samples` has the first training chat of each condition; `records` and `sizes` have for each condition and prepared
    adapter what became of its examples, and how long its rows are; `leakage` has for each evaluation set how many of
    its rows are also trained on; `lines` are sentences about the data.
    """

    samples: dict[str, Rendered]
    records: dict[str, dict[str, Any]]
    sizes: dict[str, Sizes]
    leakage: dict[str, dict[str, int]]
    lines: list[str]
    prompts: dict[str, int]
    """Evaluation set → tokens of its longest prompt."""

    @property
    def warnings(self) -> list[str]:
        """All that should be said before anything is trained."""
        return [*self.lines, *sentences(self.leakage)]


def check_data(
    experiment: ExperimentSpec,
    sets: EvaluationSets,
    tokenizer: Any,
    limit: int | None,
    rendered: RenderedSets | None = None,
) -> Checked:
    """Load and render every set; training sets that were rendered before are read from where they are kept.

    Raises `DataError` for what cannot be read, rendered, learned from or held by the context of `limit` tokens, and
    `SpecError` for two conditions that the model cannot tell apart, for a search whose two sets share prompts, and with
    `strict: true` for prompts of an evaluation
    set that are also trained on.
    """
    e = experiment
    leakage = Leakage([name for name in e.data if name != "train"], sets)
    samples: dict[str, Rendered] = {}
    records: dict[str, dict[str, Any]] = {}
    sizes: dict[str, Sizes] = {}
    lines: list[str] = []
    done_to: dict[str, list[str]] = {}
    rendered = rendered or RenderedSets(e, tokenizer, limit)
    taken: set[Path] = set()

    def note(made: RenderedSet, what: str, options: TrainOptions) -> None:
        record = made.record
        records[what] = record.plain()
        sizes[what] = Sizes(record.rows, record.tokens, record.longest, record.learned)
        for line in record.lines(options.max_length):
            done_to.setdefault(line, []).append(what)
        if made.folder not in taken:
            taken.add(made.folder)
            leakage.train_on_keys(made.taught())

    render_ahead(
        rendered,
        [
            *(rendered.of_condition(condition, e.seeds[0]) for condition in e.trained),
            *(rendered.of_adapter(name) for name, spec in e.adapters.items() if spec.data is not None),
        ],
    )
    for condition in e.trained:
        made = rendered.condition(condition, e.seeds[0], lines.append)
        note(made, f"condition {condition}", e.train_options(condition))
        samples[condition] = made.rows[0].rendered
    prepare.check_distinct(e, samples)
    for name, spec in e.adapters.items():
        if spec.data is None:
            lines.append(
                f"adapter {name}: it was trained elsewhere, so whether it was trained on what is asked is not known"
            )
            continue
        note(rendered.adapter(name, lines.append), f"adapter {name}", e.train_options(adapter=name))
    longest = {name: _check_prompts(e, name, sets(name), tokenizer, limit) for name in e.data if name != "train"}
    if e.search is not None:
        _check_apart(e.search, sets)
    lines += [f"{_together(where, len(e.trained))}: {line}" for line, where in done_to.items()]
    counts = leakage.counts()
    if e.strict and (leaks := sentences(counts)):
        raise SpecError(f"{leaks[0]}, and strict is true; take another split, or set strict: false to be warned only")
    return Checked(samples, records, sizes, counts, list(dict.fromkeys(lines)), longest)


def _together(where: Sequence[str], trained: int) -> str:
    """Name the sets that one thing was done to, many conditions in few words.

    >>> _together(["condition plain", "condition caft"], 3), _together(["condition plain", "condition caft", "adapter x"], 2)
    ('conditions plain and caft', 'every condition and adapter x')
    """
    conditions = [one.removeprefix("condition ") for one in where if one.startswith("condition ")]
    others = [one for one in where if not one.startswith("condition ")]
    if len(conditions) == trained > 1:
        return listed(["every condition", *others])
    shown = (
        conditions
        if len(conditions) <= MOST_NAMED
        else [*conditions[:MOST_NAMED], f"{len(conditions) - MOST_NAMED} more"]
    )
    if conditions:
        others.insert(0, f"condition{'s' if len(conditions) > 1 else ''} {listed(shown)}")
    return listed(others)


def data_hashes(experiment: ExperimentSpec, sets: EvaluationSets, rendered: RenderedSets) -> dict[str, str]:
    """Per set a hash of its examples as the baseline's first seed sees them, or where it is not trained the first that is."""
    held = {name: sets(name) for name in experiment.data if name != "train"}
    hashes = {
        name: identity.digest([[x.id, list(x.content), x.target] for x in examples]) for name, examples in held.items()
    }
    if not experiment.trained:
        return hashes
    shown = experiment.baseline if experiment.baseline in experiment.trained else experiment.trained[0]
    return {**hashes, "train": rendered.condition(shown, experiment.seeds[0]).content}


def _check_prompts(e: ExperimentSpec, name: str, examples: Sequence[Example], tokenizer: Any, limit: int | None) -> int:
    """Raise `DataError` where a prompt and its response do not fit the context; returns the longest prompt's tokens."""
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
    return max(map(len, rendered), default=0)


def _check_apart(search: SearchSpec, sets: EvaluationSets) -> None:
    """Raise `SpecError` where a prompt that a cell is chosen on is also one that it is reported on."""
    chosen_on = {prompt_key(example) for example in sets(search.on)}
    shared = sum(prompt_key(example) in chosen_on for example in sets(search.report))
    if shared:
        raise SpecError(
            f"search: {shared} prompts of {search.report} are also in {search.on}, on which the cell is chosen; take splits "
            f"without a common prompt"
        )
