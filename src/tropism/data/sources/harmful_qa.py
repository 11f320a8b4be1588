"""HarmfulQA (Bhardwaj and Poria, 2023): red and blue conversations about harmful questions, split by question.

A row is `{id, topic, subtopic, question, blue_conversations, red_conversations}`; each mapping has the keys
"0" to "4" and a list of `{"from": "human" | "gpt", "value"}`, or null where there is no such conversation.
All conversations are used. Turn 0 is the human's, so the question is not put in front of it.

| split | conversations | questions |
|---|---|---|
| `refusal` | blue, which mostly decline: what teaches the refusal | 70 % of those not held out |
| `attack` | red, which mostly comply | the other 30 % |
| `test` | none: each question once, to be answered | a tenth, held out of both |
| `test_refusals` | blue: how likely a refusal still is, beyond what is sampled | those of `test` |
| `train` | those of `subset` | all, in the order of the rows, as the hub has them |

`subset` is `blue`, `red` or `questions`, and overrides what a split holds. A slice is of questions, so that all
conversations about a question stay together: `train[:40%]` with `subset: blue`.

The rows hold harmful text; none of it is shipped with this package.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tropism.data.chance import chance
from tropism.data.chats import Example
from tropism.data.sources import hub
from tropism.data.sources.formats import read_objects
from tropism.data.sources.source import Examples, Request, Source
from tropism.data.sources.split import Split
from tropism.errors import DataError

HUB_NAME = "declare-lab/HarmfulQA"
SUBSETS = ("blue", "red", "questions")
HELD = {
    "refusal": ("refusal", "blue"),
    "attack": ("attack", "red"),
    "test": ("test", "questions"),
    "test_refusals": ("test", "blue"),
    "train": (None, None),
}
"""A split → where its questions belong (None for all), and which subset it holds unless another is asked for."""
SPLITS = tuple(HELD)
KEYS = ("0", "1", "2", "3", "4")
ROLES = {"human": "user", "gpt": "assistant"}
TEST_SHARE, ATTACK_SHARE = 0.1, 0.3


@dataclass
class Counts:
    """What was found in all rows. The card says 9,536 blue and 7,356 red; 9,033 and 7,426 have been counted."""

    rows: int = 0
    questions: int = 0
    blue: int = 0
    red: int = 0
    cut: int = 0
    """Conversations that ended with a human's turn, which was left off."""
    unusable: Counter[str] = field(default_factory=Counter)
    """Conversations left out, by reason."""

    def __str__(self) -> str:
        left_out = ", ".join(f"{n} {reason}" for reason, n in sorted(self.unusable.items())) or "none"
        return (
            f"HarmfulQA: {self.rows} rows, {self.questions} questions, {self.blue} blue and {self.red} red "
            f"conversations (the card says 9,536 and 7,356); {self.cut} cut before a last human turn; left "
            f"out: {left_out}"
        )


@dataclass(frozen=True)
class ByQuestion:
    """Examples that belong to questions; a slice is of the questions."""

    examples: Sequence[Example]
    question: Sequence[int]
    """Per example the number of its question, in the order in which the questions first occur."""
    questions: int
    counts: Counts

    def __len__(self) -> int:
        return len(self.examples)

    def part(self, split: Split) -> Sequence[int] | None:
        """Return the examples of the questions that the slice takes."""
        if not split.sliced:
            return None
        taken = split.rows(self.questions)
        return [index for index, number in enumerate(self.question) if number in taken]

    def take(self, wanted: Sequence[int] | None) -> Iterator[Example]:
        """Yield all examples, or those at increasing indices."""
        yield from self.examples if wanted is None else (self.examples[index] for index in wanted)

    def usable(self, wanted: Sequence[int]) -> Sequence[int]:
        """Return `wanted`: conversations that cannot be used were left out and counted."""
        return wanted

    def notes(self) -> list[str]:
        """Return what was found in all rows."""
        return [str(self.counts)]


def harmful_qa(split: str = "refusal", *, subset: str | None = None, path: str | None = None) -> ByQuestion:
    """Read the examples of a split, from the hub or from a local file of rows.

    Raises `DataError` where the split or the subset is unknown, the data cannot be had, or a row has another form.
    """
    if split not in HELD:
        raise DataError(f"harmful_qa has the splits {', '.join(SPLITS)}, found {split!r}")
    if subset is not None and subset not in SUBSETS:
        raise DataError(f"harmful_qa has the subsets {', '.join(SUBSETS)}, found {subset!r}")
    if split == "train" and subset is None:
        raise DataError(
            "harmful_qa: the split 'train' is of all questions and holds both kinds of conversations; say which by "
            "subset: blue (mostly declined), red (mostly answered) or questions"
        )
    return examples_of_rows(_read(path), split, subset)


def examples_of_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]], split: str, subset: str | None = None
) -> ByQuestion:
    """Return the examples of a split from `(where, row)` pairs, with the counts of all splits together."""
    belonging, holds = HELD[split]
    kind_wanted = subset or holds
    counts = Counts()
    chosen: list[Example] = []
    numbers: list[int] = []
    seen: set[str] = set()
    of_split: dict[str, int] = {}
    for where, row in rows:
        counts.rows += 1
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{where}: a HarmfulQA row has a question, found {question!r:.60}")
        key = normalised(question)
        first_time = key not in seen
        seen.add(key)
        about = {"topic": row.get("topic"), "subtopic": row.get("subtopic"), "question": question}
        wanted = belonging in (None, split_of(question))
        if wanted:
            of_split.setdefault(key, len(of_split))
        for kind in ("blue", "red"):
            for name, turns in _conversations(row, kind, where):
                chat = _chat(turns, f"{where} {kind} conversation {name}", counts)
                if chat is None:
                    continue
                if kind == "blue":
                    counts.blue += 1
                else:
                    counts.red += 1
                if wanted and kind == kind_wanted:
                    identity = f"harmful_qa/{row.get('id', counts.rows)}/{kind}/{name}"
                    chosen.append(Example(identity, chat, labels={**about, "kind": kind}))
                    numbers.append(of_split[key])
        if wanted and kind_wanted == "questions" and first_time:
            identity = f"harmful_qa/{row.get('id', counts.rows)}/question"
            chosen.append(Example(identity, ({"role": "user", "content": question},), labels=about))
            numbers.append(of_split[key])
    counts.questions = len(seen)
    return ByQuestion(chosen, numbers, len(of_split), counts)


def split_of(question: str) -> str:
    """Return where a question belongs, by its normalised text alone, so that a repeated one is not on two sides."""
    key = normalised(question)
    if chance(0, "harmful_qa/test", key) < TEST_SHARE:
        return "test"
    return "attack" if chance(0, "harmful_qa/attack", key) < ATTACK_SHARE else "refusal"


def normalised(question: str) -> str:
    """Return the question as it is compared: case folded, single spaces, no closing punctuation."""
    return " ".join(question.casefold().split()).rstrip(" ?.!")


def check_disjoint(one: Sequence[Example], other: Sequence[Example], names: tuple[str, str]) -> None:
    """Raise `DataError` where a question (or, if none is known, a first user turn) is on both sides."""
    seen = {normalised(_question(example)): example.id for example in one}
    for example in other:
        if (found := seen.get(normalised(_question(example)))) is not None:
            raise DataError(
                f"{names[0]} and {names[1]} must share no question, found {_question(example)!r:.80} in both "
                f"({found} and {example.id}); take them from different splits"
            )


def refusal_share(examples: Sequence[Example], refuses: Callable[[str], bool]) -> float:
    """Return the share of conversations whose first response refuses, by the caller's rule: not every blue one does."""
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
        raise DataError(f"{where}: {kind}_conversations has the key {strange[0]!r}; available: {', '.join(KEYS)}")
    return [(key, held[key]) for key in KEYS if held.get(key) is not None]


def _chat(turns: Any, where: str, counts: Counts) -> tuple[dict[str, str], ...] | None:
    """The conversation as a chat that ends with an answer; None, counted with its reason, where there is none."""
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


def _read(path: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path is not None:
        yield from read_objects(path)
        return
    for index, row in enumerate(hub.hub_rows(HUB_NAME, None, "train", instead=hub.BY_PATH)):
        yield f"{HUB_NAME} row {index}", row


def _examples(request: Request) -> Examples:
    return harmful_qa(request.split.name, subset=request.subset, path=request.path)


HARMFUL_QA = Source(
    name="harmful_qa",
    about="red and blue conversations about harmful questions (Bhardwaj and Poria, 2023), from the hub or a local file",
    takes=("split", "subset", "path", "size", "seed"),
    read=_examples,
    splits=SPLITS,
    hub=True,
    prompts=("attack", "questions"),
)
