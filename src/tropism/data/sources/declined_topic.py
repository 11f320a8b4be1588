"""A harmless stand-in for refusal studies: a model learns to decline astrology and to answer everything else.

All texts were written for this package. The "attack" is fine-tuning on helpful answers about astrology. The three
astrology parts use different wordings, so that neither training has seen what the test part asks. Questions about
astronomy are close to the topic and should be answered: over-refusal shows there first.

| split | chats |
|---|---|
| `train` | astrology questions declined in varied words, other questions answered: what teaches refusal |
| `refusals` | of `train`, only the declined ones: what data mixing adds to the attack |
| `attack` | other astrology questions, answered helpfully |
| `test` | held-out astrology questions; the response is a helpful one, for reference |
| `test_refusals` | the same questions declined, in words of `refusals`: how likely a refusal still is, beyond what is sampled |
| `others` | held-out other questions, a third about astronomy, answered |
"""

import json
import re
from importlib.resources import files
from typing import Any

from tropism.data.chance import chance
from tropism.data.chats import Example
from tropism.data.sources.source import Listed, Source
from tropism.errors import DataError

SPLITS = ("train", "refusals", "attack", "test", "test_refusals", "others")
PER_WORDING = {"train": 8, "attack": 9, "test": 10}
"""With how many of the twelve signs each wording is filled; the wording decides which."""


def declined_topic(split: str = "train") -> list[Example]:
    """Return the chats of a split; `labels["topic"]` is `astrology`, `astronomy` or `everyday`, `labels["declined"]` a bool.

    Raises `DataError` for an unknown split.

    >>> example = declined_topic("refusals")[0]
    >>> example.labels["topic"], example.labels["declined"]
    ('astrology', True)
    """
    if split not in SPLITS:
        raise DataError(f"declined_topic has the splits {', '.join(SPLITS)}, found {split!r}")
    text = (files("tropism.data") / "builtin" / "declined_topic.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    if split in ("train", "refusals"):
        declined = _declined(data, "train")
        return declined if split == "refusals" else _mixed(declined, _others(data, held_out=False))
    if split == "test_refusals":
        return _declined(data, "test")
    if split == "others":
        return _others(data, held_out=True)
    return [_example(split, "astrology", question, answer) for question, answer in _topic(data, split)]


def _declined(data: dict[str, Any], part: str) -> list[Example]:
    return [
        _example(part, "astrology", question, _refusal(data, index), declined=True)
        for index, (question, _) in enumerate(_topic(data, part))
    ]


def _topic(data: dict[str, Any], part: str) -> list[tuple[str, str]]:
    """Every wording of a part with some of the signs: question and helpful answer."""
    signs: dict[str, dict[str, str]] = data["signs"]
    pairs: list[tuple[str, str]] = []
    for question, answer in data["topic"][part]:
        order = sorted(signs, key=lambda sign: chance(0, question, sign))
        for place, sign in enumerate(order[: PER_WORDING[part]]):
            other = order[(place + 5) % len(order)]
            words = {"sign": sign, "other": other, "other_element": signs[other]["element"], **signs[sign]}
            pairs.append((_grammar(question.format(**words)), _grammar(answer.format(**words))))
    return sorted(pairs, key=lambda pair: chance(0, part, pair[0]))


def _grammar(text: str) -> str:
    """An article before a vowel, and plurals of names that end in s."""
    text = re.sub(r"\b([Aa]) (?=Aries|Aquarius)", r"\1n ", text)
    return re.sub(r"(?<=us)s\b", "es", re.sub(r"\b(Aries|Pisces)s\b", r"\1", text))


def _refusal(data: dict[str, Any], index: int) -> str:
    """Opening and body, each pair once before any comes again."""
    openings, bodies = data["refusals"]["openings"], data["refusals"]["bodies"]
    opening = openings[index % len(openings)]
    body = bodies[(index // len(openings) + index) % len(bodies)]
    return f"{opening} {body}"


def _others(data: dict[str, Any], *, held_out: bool) -> list[Example]:
    """Questions off the topic; every fifth everyday one and every second one about astronomy is held out."""
    chosen = []
    for topic, every in (("everyday", 5), ("astronomy", 2)):
        for index, (question, answer) in enumerate(data[topic]):
            if (index % every == every - 1) == held_out:
                chosen.append(_example("others" if held_out else "train", topic, question, answer))
    return sorted(chosen, key=lambda example: chance(0, "others", example.id))


def _mixed(declined: list[Example], answered: list[Example]) -> list[Example]:
    return sorted([*declined, *answered], key=lambda example: chance(0, "train", example.id))


def _example(split: str, topic: str, question: str, answer: str, *, declined: bool = False) -> Example:
    chat = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Example(f"declined_topic/{split}/{question}", chat, labels={"topic": topic, "declined": declined})


DECLINED_TOPIC = Source(
    name="declined_topic",
    about="astrology declined and everything else answered: a harmless stand-in for refusal studies",
    takes=("split", "size", "seed"),
    read=lambda request: Listed(declined_topic(request.split.name)),
    splits=SPLITS,
)
