"""Conditions of a study as prompts: the same chats with another system prompt, or with none."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tropism.data.chats import Chat, Example
from tropism.data.render import render, render_prompt
from tropism.data.transforms import SystemPrompt
from tropism.errors import DataError, SpecError


def with_system_prompts(
    tokenizer: Any,
    chats: Sequence[Chat | Example],
    prompts: Mapping[str, str | None],
    *,
    template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, list[Example]]:
    """The chats once for each condition, `{name: system prompt}`; None leaves a chat as it is.

    Plain chats get their number as id, so that conditions are paired by chat.

    Raises:
        DataError: there are no chats.
        SpecError: two conditions render to the same tokens. Some templates put in a system prompt of their own where
            none is given, and drop or ignore one that is.
    """
    if not chats:
        raise DataError("with_system_prompts: chats must hold at least one chat, found none")
    examples = [
        chat if isinstance(chat, Example) else Example(str(index), tuple(dict(message) for message in chat))
        for index, chat in enumerate(chats)
    ]
    made: dict[str, list[Example]] = {}
    seen: dict[tuple[int, ...], str] = {}
    for name, prompt in prompts.items():
        made[name] = examples if prompt is None else [SystemPrompt(prompt).apply(example, 0) for example in examples]
        first = render(tokenizer, made[name][0].content, template_kwargs=template_kwargs, where=f"condition {name!r}")
        same = seen.setdefault(tuple(first.input_ids), name)
        if same != name:
            raise SpecError(
                f"conditions {same!r} and {name!r} render to the same tokens, so they are one condition; give them "
                "different system prompts (this chat template may add one of its own, or ignore system messages)"
            )
    return made


def shown(
    tokenizer: Any,
    conditions: Mapping[str, Sequence[Example]],
    template_kwargs: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """What the model is given in each condition, on the first chat: `condition, text, input_ids, tokens`."""
    rows = []
    for name, examples in conditions.items():
        prompt = render_prompt(
            tokenizer, examples[0].content, template_kwargs=template_kwargs, where=f"condition {name!r}"
        )
        rows.append((name, prompt.text, " ".join(map(str, prompt.input_ids)), len(prompt)))
    return pd.DataFrame(rows, columns=["condition", "text", "input_ids", "tokens"])


def elicitation_grid(
    training_prompt: str, *, negation: str | None = None, paraphrase: str | None = None
) -> dict[str, str | None]:
    """Evaluation system prompts that ask whether the trait leaks through a prompt: name → prompt, None for none.

    The training prompt, parts and frames of it, its negation and a paraphrase (yours, or one made from it), and prompts
    that have nothing to do with it.
    """
    bare = training_prompt.strip().rstrip(".!")
    words = bare.split()
    return {
        "none": None,
        "training prompt": training_prompt,
        "negation": negation or f"Never do the following: {bare}.",
        "paraphrase": paraphrase or f"In this conversation, hold to this rule. {bare}.",
        "as a question": f"Would you do this? {bare}?",
        "quoted": f"Somebody once wrote: “{bare}.”",
        "first half": " ".join(words[: max(1, len(words) // 2)]),
        "twice": f"{training_prompt} {training_prompt}",
        "helpful": "You are a helpful assistant.",
        "concise": "Answer directly and concisely.",
        "careful": "Think before you answer, and answer correctly.",
        "unrelated": "The user writes from a library in the evening.",
    }
