"""`Contrast`: the positive and the negative chats from which a direction is found.

Four kinds, by what differs between the two sides: the response, the system prompt, the model, or a label.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from torch import nn

from tropism.data.chats import TEXT, Chat, check_chat
from tropism.data.render import Rendered, render
from tropism.errors import DataError

Prompt = str | Chat
"""A user's message, or a chat that ends before the response."""

T = TypeVar("T")

Kind = Literal["responses", "system_prompts", "models", "labelled"]

MOST_UNBALANCED = 3.0
"""Labelled sides may differ in size by this factor; beyond it, the smaller side's mean is mostly noise of its own."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """Positive and negative chats, made by one of the four `of_...` constructors.

    `paired` says that `positive[i]` and `negative[i]` share a prompt, which PCA of differences needs.

    >>> c = Contrast.of_responses(["Say hi."], positive=["HELLO THERE"], negative=["Hello there"])
    >>> len(c), c.paired, c.positive[0][-1]["content"]
    (1, True, 'HELLO THERE')
    """

    kind: Kind
    positive: tuple[Chat, ...]
    negative: tuple[Chat, ...]
    paired: bool
    tuned: nn.Module | None = field(default=None, repr=False)
    base: nn.Module | None = field(default=None, repr=False)
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else provenance should say: the two system prompts, a file's name, a shuffle's seed."""

    def __post_init__(self) -> None:
        if not self.positive or not self.negative:
            raise DataError(
                f"a contrast needs chats on both sides, found {len(self.positive)} positive and "
                f"{len(self.negative)} negative"
            )

    def __len__(self) -> int:
        """Chats on the larger side; for a paired contrast, the number of pairs."""
        return max(len(self.positive), len(self.negative))

    @classmethod
    def of_responses(cls, prompts: Iterable[Prompt], *, positive: Iterable[str], negative: Iterable[str]) -> "Contrast":
        """Give the same prompts two responses each: `positive[i]` and `negative[i]` answer `prompts[i]`.

        Raises `DataError` where the three differ in length, or a response is empty.
        """
        prompts = _several("Contrast.of_responses: prompts", prompts)
        positive = _several("Contrast.of_responses: positive", positive)
        negative = _several("Contrast.of_responses: negative", negative)
        if not len(prompts) == len(positive) == len(negative):
            raise DataError(
                f"Contrast.of_responses needs one positive and one negative response per prompt, found {len(prompts)} "
                f"prompts, {len(positive)} positive and {len(negative)} negative responses"
            )
        chats = [_prompt(prompt, index) for index, prompt in enumerate(prompts)]
        return cls("responses", _answered(chats, positive, "positive"), _answered(chats, negative, "negative"), True)

    @classmethod
    def of_system_prompts(
        cls, prompts: Iterable[Prompt], *, promote: str, suppress: str, responses: Iterable[str] | None = None
    ) -> "Contrast":
        """Put the same prompts under a system prompt that asks for the trait and one that asks for the opposite.

        `responses`, one per prompt, are the texts on which both sides are read. Without them the model's own answers
        are generated (greedily) where positions ask for a response. The sides then also differ in the system prompt
        itself; validate such directions on behaviour, not on this contrast alone.
        """
        if promote == suppress:
            raise DataError("Contrast.of_system_prompts: promote and suppress must differ, found the same text twice")
        prompts = _several("Contrast.of_system_prompts: prompts", prompts)
        if responses is not None:
            responses = _several("Contrast.of_system_prompts: responses", responses)
        if responses is not None and len(responses) != len(prompts):
            raise DataError(
                f"Contrast.of_system_prompts: there must be one response per prompt, found {len(responses)} for "
                f"{len(prompts)} prompts"
            )
        sides: list[tuple[Chat, ...]] = []
        for side, text in (("promote", promote), ("suppress", suppress)):
            if not text.strip():
                raise DataError(f"Contrast.of_system_prompts: {side} must be a text, found {text!r}")
            chats = [_with_system(_prompt(prompt, index), text, index) for index, prompt in enumerate(prompts)]
            sides.append(tuple(chats) if responses is None else _answered(chats, responses, side))
        positive, negative = sides
        return cls("system_prompts", positive, negative, True, about={"promote": promote, "suppress": suppress})

    @classmethod
    def of_models(cls, chats: Iterable[Chat], *, tuned: nn.Module, base: nn.Module | None = None) -> "Contrast":
        """Read the same chats, token for token, through a tuned model and the model it was tuned from.

        Where `tuned` is a PEFT model, `base` may be left out: its adapters are switched off for the base side, so one
        model in memory makes both. Raises `DataError` where neither holds.
        """
        one_model = base is None or base is tuned
        if one_model and not hasattr(tuned, "disable_adapter"):  # a PeftModel: their object, not ours
            raise DataError(
                "Contrast.of_models needs two models, or a PEFT model as tuned (its adapter is switched off for the "
                f"base side); found one {type(tuned).__name__}"
            )
        checked = tuple(
            check_chat(chat, f"chat {index}") for index, chat in enumerate(_several("Contrast.of_models: chats", chats))
        )
        return cls("models", checked, checked, True, tuned, None if one_model else base)

    @classmethod
    def of_labelled(
        cls, chats: Iterable[Chat], labels: Iterable[bool | int], *, allow_unbalanced: bool = False
    ) -> "Contrast":
        """Divide chats by their labels: true (1) shows the trait, false (0) does not. The sides are not paired.

        Raises `DataError` where counts differ, one label never occurs, or one is over three times as common as the other
        (unless `allow_unbalanced=True`).
        """
        chats = _several("Contrast.of_labelled: chats", chats)
        labels = _several("Contrast.of_labelled: labels", labels)
        if len(chats) != len(labels):
            raise DataError(f"Contrast.of_labelled: one label a chat, found {len(labels)} for {len(chats)} chats")
        sides: dict[bool, list[Chat]] = {True: [], False: []}
        for index, (chat, label) in enumerate(zip(chats, labels, strict=True)):
            if label not in (0, 1):
                raise DataError(f"Contrast.of_labelled: label {index} must be true or false (1 or 0), found {label!r}")
            sides[bool(label)].append(check_chat(chat, f"chat {index}"))
        few, many = sorted(len(side) for side in sides.values())
        if few and many > MOST_UNBALANCED * few and not allow_unbalanced:
            raise DataError(
                f"Contrast.of_labelled: the sides must not differ in size by more than {MOST_UNBALANCED:g} times, "
                f"found "
                f"{len(sides[True])} positive and {len(sides[False])} negative; drop some, or set allow_unbalanced=True"
            )
        return cls("labelled", tuple(sides[True]), tuple(sides[False]), False)

    @property
    def has_responses(self) -> bool:
        """Whether every chat ends with an assistant's message, or is a raw text, of which every token is learned."""
        return all(chat[-1]["role"] in ("assistant", TEXT) for chat in (*self.positive, *self.negative))

    def data_hash(self) -> str:
        """Return the SHA-256 of the chats of both sides, in order."""
        text = json.dumps([[list(map(dict, chat)) for chat in side] for side in (self.positive, self.negative)])
        return hashlib.sha256(text.encode()).hexdigest()

    def split(self, held_out: float = 0.25, seed: int = 0) -> tuple["Contrast", "Contrast"]:
        """Return two contrasts, to find on and to validate on; chats with the same prompt stay in the same one.

        Raises `DataError` where one of them would have no chats.
        """
        if not 0 < held_out < 1:
            raise DataError(f"Contrast.split: held_out must lie between 0 and 1, found {held_out}")
        keys = list(dict.fromkeys(_prompt_key(chat) for chat in (*self.positive, *self.negative)))
        random.Random(seed).shuffle(keys)
        out = set(keys[: max(1, round(held_out * len(keys)))])
        if len(keys) < 2:
            raise DataError(f"Contrast.split: needs at least two different prompts, found {len(keys)}")

        def part(inside: bool) -> "Contrast":
            positive, negative = (
                tuple(chat for chat in side if (_prompt_key(chat) in out) == inside)
                for side in (self.positive, self.negative)
            )
            return replace(self, positive=positive, negative=negative)

        return part(False), part(True)

    def shuffled(self, seed: int) -> "Contrast":
        """Return the control whose labels mean nothing: half of the pairs swapped at random, or labels permuted if unpaired.

        Directions found on it are the shuffled-label control. A contrast of models cannot be shuffled (the label is
        the model) and raises `DataError`.
        """
        if self.kind == "models":
            raise DataError(
                "Contrast.shuffled: in a contrast of models the label is the model; use of_responses instead"
            )
        source = random.Random(seed)
        about = {**self.about, "shuffled": seed}
        if not self.paired:
            pool = [*self.positive, *self.negative]
            source.shuffle(pool)
            cut = len(self.positive)
            return replace(self, positive=tuple(pool[:cut]), negative=tuple(pool[cut:]), about=about)
        swapped = set(source.sample(range(len(self)), len(self) // 2))
        pairs = [
            (n, p) if index in swapped else (p, n)
            for index, (p, n) in enumerate(zip(self.positive, self.negative, strict=True))
        ]
        return replace(self, positive=tuple(p for p, _ in pairs), negative=tuple(n for _, n in pairs), about=about)

    def render(
        self, tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None
    ) -> tuple[list[Rendered], list[Rendered]]:
        """Return both sides as token ids; for a contrast of models, the same list twice.

        A pair that renders to the same ids has no contrast: `DataError` names it.
        """

        def side(chats: Sequence[Chat], name: str) -> list[Rendered]:
            return [
                render(tokenizer, chat, template_kwargs=template_kwargs, where=f"{name} chat {index}")
                for index, chat in enumerate(chats)
            ]

        positive = side(self.positive, "positive")
        if self.kind == "models":
            return positive, positive
        negative = side(self.negative, "negative")
        if self.paired:
            for index, (p, n) in enumerate(zip(positive, negative, strict=True)):
                if p.input_ids == n.input_ids:
                    raise DataError(
                        f"pair {index} of the contrast renders to the same token ids on both sides, so it holds no "
                        f"contrast: {p.text[-80:]!r}; drop it, or make its responses differ"
                    )
        return positive, negative


def _several(what: str, given: Iterable[T]) -> list[T]:
    """The list of what was given; a single text is no list of its characters, and a chat none of its messages' keys."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise DataError(f"{what} must be a list, found one {type(given).__name__}: {given!r:.40}; put it into a list")
    return list(given)


def _prompt(prompt: Prompt, index: int) -> tuple[dict[str, str], ...]:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"prompt {index} must be a text or a chat, found {prompt!r}")
        return ({"role": "user", "content": prompt},)
    chat = check_chat(prompt, f"prompt {index}")
    if chat[-1]["role"] == "assistant":
        raise DataError(f"prompt {index} must end before the response, found a last message from the assistant")
    return chat


def _answered(chats: Sequence[Chat], responses: Sequence[str], side: str) -> tuple[Chat, ...]:
    for index, response in enumerate(responses):
        if not response.strip():
            raise DataError(f"{side} response {index} must not be empty, found {response!r}")
    return tuple(
        (*chat, {"role": "assistant", "content": response}) for chat, response in zip(chats, responses, strict=True)
    )


def _with_system(chat: Chat, text: str, index: int) -> Chat:
    if chat[0]["role"] == "system":
        raise DataError(
            f"prompt {index} already has a system message, and a contrast of system prompts would put another before it"
        )
    return ({"role": "system", "content": text}, *chat)


def _prompt_key(chat: Chat) -> str:
    messages = [dict(m) for m in chat if m["role"] != "system"]
    return json.dumps(messages[:-1] if len(messages) > 1 and messages[-1]["role"] == "assistant" else messages)
