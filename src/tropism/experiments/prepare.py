"""From an experiment's data to examples: what each condition trains on, checked before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tropism.data import sources
from tropism.data.chats import Example
from tropism.data.render import Rendered
from tropism.data.routes import drop_labelled
from tropism.data.transforms import Mixture, SystemPrompt
from tropism.errors import DataError, SpecError
from tropism.experiments.file import guards
from tropism.experiments.file.spec import DataSpec, ExperimentSpec


def load_data(
    spec: DataSpec, seed: int, system_prompt: str | None = None, say: Callable[[str], None] | None = None
) -> list[Example]:
    """Return the examples of a set: loaded, transformed, with a system prompt if one is given.

    `say` is told which rows and columns of a source were not used; by default that is logged.
    """
    examples: list[Example] = []
    for source in spec.names():
        loaded = sources.iterate(source, **spec.options(), on_bad_row=spec.on_bad_row, say=say)
        # Two sources may use the same ids; across sources the name keeps them apart.
        examples.extend((replace(e, id=f"{source}:{e.id}") for e in loaded) if spec.sources else loaded)
    if spec.sources and spec.size is not None:
        if spec.size > len(examples):
            raise DataError(
                f"sources {', '.join(spec.sources)} have {len(examples)} examples together, found size {spec.size}"
            )
        examples = examples[:: max(1, len(examples) // spec.size)][: spec.size]
    for transform in spec.transforms():
        transform.apply_to(examples, seed)
    if spec.drop == "labelled":
        examples = drop_labelled(examples)
    prompt = system_prompt if system_prompt is not None else spec.system_prompt
    if prompt is not None:
        SystemPrompt(prompt).apply_to(examples, seed)
    if (spec.supervise, spec.on_bad_row) != ("all_turns", "error"):
        examples = [replace(e, supervise=spec.supervise, on_bad_row=spec.on_bad_row) for e in examples]
    for more in spec.also:
        _mix_in(examples, spec, load_data(more, seed, system_prompt, say), more)
    return examples


def training_examples(
    experiment: ExperimentSpec, condition: str, seed: int, say: Callable[[str], None] | None = None
) -> list[Example]:
    """Return what a condition trains on, its system prompt included.

    Raises `DataError` where its guard routes gradients by labels and no row is labelled.
    """
    spec = experiment.train_data(condition)
    examples = load_data(spec, seed, experiment.conditions[condition].system_prompt, say)
    routed = any(name == "gradient_routing" for name, _ in guards.parts(experiment.conditions[condition].guard))
    labelled = any(example.labels.get("route") in ("forget", "retain") for example in examples)
    if routed and not labelled and not _labelled_on_purpose(spec):
        raise DataError(
            f"condition {condition}: gradient_routing needs rows that are labelled, found none among {len(examples)}; "
            f"give the rows a column 'route' (forget or retain), or set transform: {{mixture: ...}}"
        )
    return examples


def _mix_in(examples: list[Example], spec: DataSpec, more: Sequence[Example], of: DataSpec) -> None:
    """Add a set to another; where two sources use the same id, the name of the second keeps them apart."""
    ids = {example.id for example in examples}
    for example in more:
        if example.id in ids and of.names() != spec.names():
            example = replace(example, id=f"{'+'.join(of.names())}:{example.id}")
        if example.id in ids:
            raise DataError(
                f"a set and its 'also' must share no example, found {example.id!r} twice; take another split"
            )
        ids.add(example.id)
        examples.append(example)


def _labelled_on_purpose(spec: DataSpec) -> bool:
    """Whether a mixture labels the rows, which may say that none of them is."""
    own = any(isinstance(transform, Mixture) for transform in spec.transforms())
    return own or any(_labelled_on_purpose(more) for more in spec.also)


def check_lengths(rendered: Sequence[Rendered], ids: Sequence[str], limit: int | None, what: str) -> None:
    """Raise `DataError` with the count where chats are longer than the context; nothing is truncated."""
    over = [(len(r), i) for r, i in zip(rendered, ids, strict=True) if limit is not None and len(r) > limit]
    if over:
        longest, which = max(over)
        raise DataError(
            f"{what}: {len(over)} of {len(rendered)} chats are longer than the model's context of {limit} tokens (the longest, "
            f"{which!r}, has {longest}); shorten or drop them: nothing is truncated"
        )


def check_distinct(experiment: ExperimentSpec, samples: Mapping[str, Rendered]) -> None:
    """Refuse two conditions whose prompts differ in the file and not in what the model sees."""
    by_text: dict[tuple[str, str], str] = {}
    for condition, rendered in samples.items():
        spec = experiment.conditions[condition]
        rest = str([spec.data, spec.train, spec.guard, spec.after])
        twin = by_text.setdefault((rendered.text, rest), condition)
        if twin != condition:
            raise SpecError(
                f"the conditions {twin!r} and {condition!r} train on the same rendered text with the same options, so they are "
                f"one condition; change a prompt or drop one"
            )
