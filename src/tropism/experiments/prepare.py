"""From an experiment's data to examples: what each condition trains on, checked before anything is trained."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Return the examples of a set, as `stream_data` yields them."""
    return list(stream_data(spec, seed, system_prompt, say))


def stream_data(
    spec: DataSpec, seed: int, system_prompt: str | None = None, say: Callable[[str], None] | None = None
) -> Iterator[Example]:
    """Yield the examples of a set: loaded, transformed, with a system prompt if one is given.

    `say` is told which rows and columns of a source were not used; by default that is logged. Of sources one after the
    other with a `size`, and of the ids of a set with `also`, all are held; else no more than one example.
    """
    examples = _of_sources(spec, say)
    for transform in spec.transforms():
        examples = transform.apply_all(examples, seed)
    if spec.drop == "labelled":
        examples = drop_labelled(examples)
    prompt = system_prompt if system_prompt is not None else spec.system_prompt
    if prompt is not None:
        examples = SystemPrompt(prompt).apply_all(examples, seed)
    if (spec.supervise, spec.on_bad_row) != ("all_turns", "error"):
        examples = (replace(e, supervise=spec.supervise, on_bad_row=spec.on_bad_row) for e in examples)
    if not spec.also:
        yield from examples
        return
    ids: set[str] = set()
    for example in examples:
        ids.add(example.id)
        yield example
    for more in spec.also:
        yield from _mixed_in(ids, spec, stream_data(more, seed, system_prompt, say), more)


def _of_sources(spec: DataSpec, say: Callable[[str], None] | None) -> Iterator[Example]:
    """The examples of a set's source; of several, one after the other, and with a size every so-manieth."""
    if not spec.sources:
        for source in spec.names():
            yield from sources.iterate(source, **spec.options(), on_bad_row=spec.on_bad_row, say=say)
        return
    # Two sources may use the same ids; across sources the name keeps them apart.
    together = (
        replace(example, id=f"{source}:{example.id}")
        for source in spec.sources
        for example in sources.iterate(source, **spec.options(), on_bad_row=spec.on_bad_row, say=say)
    )
    if spec.size is None:
        yield from together
        return
    examples = list(together)
    if spec.size > len(examples):
        raise DataError(
            f"sources {', '.join(spec.sources)} have {len(examples)} examples together, found size {spec.size}"
        )
    yield from examples[:: max(1, len(examples) // spec.size)][: spec.size]


def training_examples(
    experiment: ExperimentSpec, condition: str, seed: int, say: Callable[[str], None] | None = None
) -> list[Example]:
    """Return what a condition trains on, its system prompt included.

    Raises `DataError` where its guard routes gradients by labels and no row is labelled.
    """
    spec = experiment.train_data(condition)
    examples = load_data(spec, seed, experiment.conditions[condition].system_prompt, say)
    check_labelled(experiment, condition, len(examples), sum(map(is_labelled, examples)))
    return examples


def is_labelled(example: Example) -> bool:
    """Whether gradient routing does anything with an example."""
    return example.labels.get("route") in ("forget", "retain")


def check_labelled(experiment: ExperimentSpec, condition: str, examples: int, labelled: int) -> None:
    """Raise `DataError` where a condition routes gradients by labels and no example is labelled."""
    routed = any(name == "gradient_routing" for name, _ in guards.parts(experiment.conditions[condition].guard))
    if routed and not labelled and not _labelled_on_purpose(experiment.train_data(condition)):
        raise DataError(
            f"condition {condition}: gradient_routing needs rows that are labelled, found none among {examples}; "
            f"give the rows a column 'route' (forget or retain), or set transform: {{mixture: ...}}"
        )


def _mixed_in(ids: set[str], spec: DataSpec, more: Iterator[Example], of: DataSpec) -> Iterator[Example]:
    """A set that is added to another; where two sources use the same id, the name of the second keeps them apart."""
    for example in more:
        if example.id in ids and of.names() != spec.names():
            example = replace(example, id=f"{'+'.join(of.names())}:{example.id}")
        if example.id in ids:
            raise DataError(
                f"a set and its 'also' must share no example, found {example.id!r} twice; take another split"
            )
        ids.add(example.id)
        yield example


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
