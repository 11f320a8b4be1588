"""HarmfulQA (Bhardwaj and Poria, 2023): red and blue conversations about harmful questions, split by
question.

A row is `{id, topic, subtopic, question, blue_conversations, red_conversations}`; each mapping has the keys
"0" to "4" and a list of `{"from": "human" | "gpt", "value"}`, or null where there is no such conversation.
All conversations are used. Turn 0 is the human's, so the question is not put in front of it.

| split | conversations | questions |
|---|---|---|
| `refusal` | blue, which mostly decline: what teaches the refusal | 70 % of those not held out |
| `attack` | red, which mostly comply | the other 30 % |
| `test` | none: each question once, to be answered | a tenth, held out of both |
| `test_refusals` | blue: how likely refusing still is, where it is not sampled | those of `test` |

The rows hold harmful text; none of it is shipped with this package.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tropism.data.chance import chance
from tropism.data.chats import Example
from tropism.data.sources.files import read_jsonl
from tropism.errors import DataError

log = logging.getLogger(__name__)

HUB_NAME = "declare-lab/HarmfulQA"
SPLITS = ("refusal", "attack", "test", "test_refusals")
CONVERSATIONS = {("refusal", "blue"): "refusal", ("attack", "red"): "attack", ("test", "blue"): "test_refusals"}
"""The split of a conversation, by where its question belongs and its kind."""
KEYS = ("0", "1", "2", "3", "4")
ROLES = {"human": "user", "gpt": "assistant"}
TEST_SHARE, ATTACK_SHARE = 0.1, 0.3


@dataclass
class Counts:
    """What was found in all rows; the card says 9,536 blue and 7,356 red, and 9,033 and 7,426 have been
    counted.
    """

    rows: int = 0
    questions: int = 0
    blue: int = 0
    red: int = 0
    cut: int = 0
    """Conversations whose last turn was the human's, which was left off."""
    unusable: Counter[str] = field(default_factory=Counter)
    """Conversations left out, by reason."""

    def __str__(self) -> str:
        left_out = ", ".join(f"{n} {reason}" for reason, n in sorted(self.unusable.items())) or "none"
        return (
            f"HarmfulQA: {self.rows} rows, {self.questions} questions, {self.blue} blue and {self.red} red "
            f"conversations (the card says 9,536 and 7,356); {self.cut} cut before a last human turn; left "
            f"out: {left_out}"
        )


def harmful_qa(split: str = "refusal", *, path: str | None = None) -> list[Example]:
    """The examples of a split, from the hub or from a local `.json` or `.jsonl` file of rows; logs the counts
    found.

    Raises `DataError` where the split is unknown, the data cannot be had, or a row has another form.
    """
    if split not in SPLITS:
        raise DataError(f"harmful_qa has the splits {', '.join(SPLITS)}, found {split!r}")
    examples, counts = examples_of_rows(_read(path), split)
    log.warning("%s", counts)
    return examples


def examples_of_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], split: str) -> tuple[list[Example], Counts]:
    """The examples of a split from `(where, row)` pairs, and the counts of all splits together."""
    counts = Counts()
    chosen: list[Example] = []
    questions: set[str] = set()
    for where, row in rows:
        counts.rows += 1
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{where}: a HarmfulQA row has a question, found {question!r:.60}")
        key = normalised(question)
        first_time = key not in questions
        questions.add(key)
        about = {"topic": row.get("topic"), "subtopic": row.get("subtopic"), "question": question}
        place = split_of(question)
        for kind in ("blue", "red"):
            for name, turns in _conversations(row, kind, where):
                chat = _chat(turns, f"{where} {kind} conversation {name}", counts)
                if chat is None:
                    continue
                if kind == "blue":
                    counts.blue += 1
                else:
                    counts.red += 1
                if CONVERSATIONS.get((place, kind)) == split:
                    identity = f"harmful_qa/{row.get('id', counts.rows)}/{kind}/{name}"
                    chosen.append(Example(identity, chat, labels={**about, "kind": kind}))
        if split == place == "test" and first_time:
            identity = f"harmful_qa/{row.get('id', counts.rows)}/question"
            chosen.append(Example(identity, ({"role": "user", "content": question},), labels=about))
    counts.questions = len(questions)
    return chosen, counts


def split_of(question: str) -> str:
    """Which split a question belongs to: by its normalised text alone, so a repeated question cannot be on
    two sides.
    """
    key = normalised(question)
    if chance(0, "harmful_qa/test", key) < TEST_SHARE:
        return "test"
    return "attack" if chance(0, "harmful_qa/attack", key) < ATTACK_SHARE else "refusal"


def normalised(question: str) -> str:
    """The question as it is compared: case folded, white space single, no closing punctuation."""
    return " ".join(question.casefold().split()).rstrip(" ?.!")


def check_disjoint(one: Sequence[Example], other: Sequence[Example], names: tuple[str, str]) -> None:
    """Raise `DataError` where a question (or, where none is known, a first user turn) is on both sides."""
    seen = {normalised(_question(example)): example.id for example in one}
    for example in other:
        if (found := seen.get(normalised(_question(example)))) is not None:
            raise DataError(
                f"{names[0]} and {names[1]} must share no question, found {_question(example)!r:.80} in both "
                f"({found} and {example.id}); take them from different splits"
            )


def refusal_share(examples: Sequence[Example], refuses: Callable[[str], bool]) -> float:
    """Share of the conversations whose first response refuses, by the caller's rule; not every blue one
    does.
    """
    if not examples:
        raise DataError("refusal_share needs at least one conversation, found none")
    firsts = [next(m["content"] for m in example.chat if m["role"] == "assistant") for example in examples]
    return sum(refuses(text) for text in firsts) / len(firsts)


def _question(example: Example) -> str:
    question = example.labels.get("question")
    return question if isinstance(question, str) else example.prompt[0]["content"]


def _conversations(row: Mapping[str, Any], kind: str, where: str) -> list[tuple[str, Any]]:
    held = row.get(f"{kind}_conversations")
    if held is None:
        return []
    if not isinstance(held, Mapping):
        raise DataError(f"{where}: {kind}_conversations must map '0'..'4' to turns, found {type(held).__name__}")
    strange = sorted(set(held) - set(KEYS))
    if strange:
        raise DataError(f"{where}: {kind}_conversations has the key {strange[0]!r}; known are {', '.join(KEYS)}")
    return [(key, held[key]) for key in KEYS if held.get(key) is not None]


def _chat(turns: Any, where: str, counts: Counts) -> tuple[dict[str, str], ...] | None:
    """The conversation as a chat that ends with an answer; None, counted with its reason, where there is
    none.
    """
    if not isinstance(turns, list):
        raise DataError(f"{where} must be a list of turns, found {type(turns).__name__}")
    chat: list[dict[str, str]] = []
    for index, turn in enumerate(turns):
        role = ROLES.get(str(turn.get("from"))) if isinstance(turn, Mapping) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise DataError(
                f"{where}: turn {index} must be {{'from': 'human' or 'gpt', 'value': text}}, found {turn!r:.60}"
            )
        chat.append({"role": role, "content": turn["value"]})
    if chat and chat[-1]["role"] == "user":
        chat.pop()
        counts.cut += 1
    reason = _unusable(chat)
    if reason is not None:
        counts.unusable[reason] += 1
        return None
    return tuple(chat)


def _unusable(chat: Sequence[Mapping[str, str]]) -> str | None:
    if not chat:
        return "without an answer"
    if [message["role"] for message in chat] != ["user", "assistant"] * (len(chat) // 2):
        return "whose turns do not alternate from the human on"
    if any(not message["content"].strip() for message in chat):
        return "with an empty turn"
    return None


def _read(path: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    if path is None:
        from tropism.data.sources import hub

        return [(f"{HUB_NAME} row {index}", row) for index, row in enumerate(hub.hub_rows(HUB_NAME, None, "train"))]
    if not Path(path).is_file():
        raise DataError(f"harmful_qa: there is no file {path}")
    if path.endswith(".jsonl"):
        return list(read_jsonl(Path(path)))
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"harmful_qa: {path} is not JSON ({error})") from None
    if not isinstance(rows, list):
        raise DataError(f"harmful_qa: {path} must hold a list of rows, found {type(rows).__name__}")
    return [(f"{path} row {index}", row) for index, row in enumerate(rows)]
