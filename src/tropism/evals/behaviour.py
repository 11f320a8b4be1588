"""Scored behaviour for a validity report: what a model itself answers, each answer with its score."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from tropism.activations.mode import adapters_off
from tropism.data.chats import Chat, Example
from tropism.data.generation import GenerateOptions, generate
from tropism.directions.contrast_files import prompts_of
from tropism.directions.contrasts import Contrast
from tropism.directions.read_once import once
from tropism.directions.validate import Behaviour
from tropism.evals.scorers.base import ResponseScorer, Sample

Answered = Sequence[tuple[Example, str]]
"""Examples whose prompts were answered, with the answers."""


def own_answers(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    asked: Sequence[Example] | None = None,
    *,
    options: GenerateOptions | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Answered:
    """What the model answers, to compare with the projections of directions of this kind of contrast.

    - of system prompts, with answers: both sides' answers, without the prompt that asked for them;
    - of system prompts, without (directions at `last_prompt`): both sides answered now, the prompt kept, since that is
      where they are read;
    - any other: the answers to `asked`, by default the contrast's own prompts; in a contrast of models by one PEFT model,
      with its adapters on and off.
    """
    if contrast.kind == "system_prompts" and contrast.has_responses:
        chats = [*contrast.positive, *contrast.negative]
        return list(zip(_examples(prompts_of(chats)), (chat[-1]["content"] for chat in chats), strict=True))
    if contrast.kind == "system_prompts":
        examples = _examples([*contrast.positive, *contrast.negative])
    else:
        examples = _examples(prompts_of(list(contrast.positive))) if asked is None else list(asked)
    prompts = [example.prompt for example in examples]
    answer = partial(generate, model, tokenizer, prompts, options, template_kwargs=template_kwargs)
    answered = list(zip(examples, once(model, repr((prompts, template_kwargs, options)), answer), strict=True))
    if contrast.kind == "models":
        with adapters_off(model):
            again = generate(model, tokenizer, prompts, options, template_kwargs=template_kwargs)
        answered += zip(examples, again, strict=True)
    return answered


def scored(name: str, scorer: ResponseScorer, answered: Answered) -> tuple[Behaviour | None, int]:
    """The behaviour that a scorer sees in answers, and how many it could not score; None where it scored none."""
    chats: list[Chat] = []
    scores: list[float] = []
    for example, response in answered:
        sample = Sample(example.id, example.prompt, response, example.target, example.labels)
        value = scorer.score(sample).value if response.strip() else None
        if value is not None:
            chats.append([*example.prompt, {"role": "assistant", "content": response}])
            scores.append(value)
    return (Behaviour(name, chats, scores) if scores else None), len(answered) - len(scores)


def _examples(prompts: Sequence[Chat]) -> list[Example]:
    return [Example(str(index), tuple(dict(message) for message in prompt)) for index, prompt in enumerate(prompts)]
