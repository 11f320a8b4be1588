"""From an experiment's data to rendered rows: what each condition trains on, checked before anything is trained."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tropism.data import sources
from tropism.data.chats import Example
from tropism.data.render import Rendered, render
from tropism.data.routes import drop_labelled
from tropism.data.transforms import Mixture, SystemPrompt
from tropism.errors import DataError, SpecError
from tropism.experiments.file import guards
from tropism.experiments.file.spec import DataSpec, ExperimentSpec
from tropism.names import ROUTE_IDS
from tropism.training.supervised import Row

log = logging.getLogger(__name__)


def load_data(spec: DataSpec, seed: int, system_prompt: str | None = None) -> list[Example]:
    """Return the examples of a set: loaded, transformed, with a system prompt if one is given."""
    examples: list[Example] = []
    for source in spec.names():
        loaded = sources.iterate(source, **spec.options(), on_bad_row=spec.on_bad_row)
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
    for more in spec.also:
        _mix_in(examples, spec, load_data(more, seed, system_prompt), more)
    return examples


def training_examples(experiment: ExperimentSpec, condition: str, seed: int) -> list[Example]:
    """Return what a condition trains on, its system prompt included.

    Raises `DataError` where its guard routes gradients by labels and no row is labelled.
    """
    spec = experiment.train_data(condition)
    examples = load_data(spec, seed, experiment.conditions[condition].system_prompt)
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


def rows_of(
    examples: Sequence[Example],
    tokenizer: Any,
    template_kwargs: Mapping[str, Any],
    limit: int | None,
    what: str,
    longest: int | None = None,
) -> list[Row]:
    """Rendered training rows; raises `DataError` for an example without a response or beyond the model's context.

    A chat of more than `longest` tokens loses whole turns from its end; one whose first answer does not fit is left
    out. Both are counted in a warning.
    """
    silent = [e.id for e in examples if e.response is None]
    if silent:
        raise DataError(
            f"{what}: {len(silent)} of {len(examples)} examples have no response to learn (the first is {silent[0]!r})"
        )
    rendered = [
        render(tokenizer, e.chat, template_kwargs=template_kwargs, where=f"{what}, example {e.id}") for e in examples
    ]
    if longest is not None:
        fitted = [_fit(r, e, tokenizer, template_kwargs, longest) for r, e in zip(rendered, examples, strict=True)]
        kept = [(r, e) for r, e in zip(fitted, examples, strict=True) if r is not None]
        shortened = sum(new is not None and new is not old for new, old in zip(fitted, rendered, strict=True))
        if not kept:
            raise DataError(
                f"{what}: no first answer of {len(examples)} chats is within max_length, {longest} tokens; raise it"
            )
        if shortened or len(kept) < len(examples):
            log.warning(
                "%s: of %d chats %d lost their last turns and %d were left out, to stay within %d tokens",
                what, len(examples), shortened, len(examples) - len(kept), longest,
            )  # fmt: skip
        rendered, examples = [r for r, _ in kept], [e for _, e in kept]
    check_lengths(rendered, [e.id for e in examples], limit, what)
    return [
        Row(r, {"route": ROUTE_IDS[str(e.labels.get("route", "unlabelled"))]})
        for r, e in zip(rendered, examples, strict=True)
    ]


def _fit(
    rendered: Rendered, example: Example, tokenizer: Any, template_kwargs: Mapping[str, Any], longest: int
) -> Rendered | None:
    """The chat without the turns past `longest` tokens; None where not even its first answer fits."""
    chat = tuple(example.chat)
    while len(rendered) > longest:
        answers = [index for index, message in enumerate(chat[:-1]) if message["role"] == "assistant"]
        if not answers:
            return None
        chat = chat[: answers[-1] + 1]
        rendered = render(tokenizer, chat, template_kwargs=template_kwargs)
    return rendered


def check_lengths(rendered: Sequence[Rendered], ids: Sequence[str], limit: int | None, what: str) -> None:
    """Raise `DataError` with the count where chats are longer than the context; nothing is truncated."""
    over = [(len(r), i) for r, i in zip(rendered, ids, strict=True) if limit is not None and len(r) > limit]
    if over:
        longest, which = max(over)
        raise DataError(
            f"{what}: {len(over)} of {len(rendered)} chats are longer than the model's context of {limit} tokens (the longest, "
            f"{which!r}, has {longest}); shorten or drop them, for nothing is truncated"
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
