"""The question files of the emergent-misalignment evaluations: YAML lists of questions and judge prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tropism.data.chats import Example
from tropism.data.sources.files import check_file_split
from tropism.data.sources.source import Examples, Listed, Request, Source
from tropism.errors import DataError
from tropism.given import read_yaml

TYPE = "free_form_judge_0_100"
JUDGED = ("aligned", "coherent")
ENDINGS = (".yaml", ".yml")
_KEYS = ("id", "type", "paraphrases", "system", "samples_per_paraphrase", "judge", "judge_prompts")
_REQUIRED = ("id", "paraphrases", "judge_prompts")


@dataclass(frozen=True)
class QuestionRow:
    """One question as its file has it, checked; `where` names it in a complaint."""

    where: str
    id: str
    paraphrases: tuple[str, ...]
    judge_prompts: Mapping[str, str]
    system: str | None = None
    samples_per_paraphrase: int = 1

    def chat(self, paraphrase: int) -> list[dict[str, str]]:
        """Return what the model is asked: the system prompt, if there is one, and one wording."""
        return asked(self.paraphrases[paraphrase], self.system)


def asked(wording: str, system: str | None) -> list[dict[str, str]]:
    """Return a chat that ends with the question, after its system prompt if there is one."""
    user = {"role": "user", "content": wording}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def read_question_rows(path: str | Path) -> list[QuestionRow]:
    """Read a question file; raises `DataError` that names the file, the question and the key of what is wrong.

    Keys of a question: `id`, `paraphrases`, `judge_prompts` (`aligned` and `coherent`), and, where wanted, `system`,
    `samples_per_paraphrase`, `type`, `judge` (the one that was published; the experiment says which is asked). An unknown
    key is an error: a key that an evaluator drops changes what it measures (the `system` of the JSON variants is the
    known case).
    """
    source = Path(path)
    raw = read_yaml(source, "question file", DataError)
    if not isinstance(raw, list) or not raw:
        raise DataError(f"{source}: a question file is a YAML list of questions, found {type(raw).__name__}")
    rows = [_row(entry, f"{source.name}: question {number}") for number, entry in enumerate(raw, start=1)]
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(f"{source.name}: the id {row.id!r} occurs twice; ids must be unique")
        seen.add(row.id)
    return rows


def question_prompts(path: str | Path) -> list[Example]:
    """Return the prompts of a question file: every wording, as often as the file says.

    Samples go round: the first of every wording, then the second, so that the first so many prompts treat the questions
    alike. Each example has its question's id in `labels["question_id"]`. Sampled answers to the same prompt differ only
    where the temperature is above 0.
    """
    rows = read_question_rows(path)
    most = max(row.samples_per_paraphrase for row in rows)
    return [
        Example(f"{row.id}/{wording}/{sample}", tuple(row.chat(wording)), labels={"question_id": row.id})
        for sample in range(most)
        for row in rows
        for wording in range(len(row.paraphrases))
        if sample < row.samples_per_paraphrase
    ]


def _row(entry: Any, where: str) -> QuestionRow:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where} must be a mapping, found {type(entry).__name__}")
    if isinstance(entry.get("id"), str):
        where = f"{where} ({entry['id']})"
    for key in _REQUIRED:
        if key not in entry:
            raise DataError(f"{where} lacks the key {key!r}")
    for key in entry:
        if key not in _KEYS:
            raise DataError(f"{where} has the unknown key {key!r}; available: {', '.join(_KEYS)}")
    if entry.get("type", TYPE) != TYPE:
        raise DataError(f"{where}: type must be {TYPE!r}, found {entry['type']!r}")
    paraphrases = entry["paraphrases"]
    if not isinstance(paraphrases, list) or not paraphrases or not all(_is_text(one) for one in paraphrases):
        raise DataError(f"{where}: paraphrases must be a list of non-empty texts, found {paraphrases!r:.60}")
    if not _is_text(entry["id"]):
        raise DataError(f"{where}: id must be a non-empty text, found {entry['id']!r:.60}")
    for key in ("system", "judge"):
        if entry.get(key) is not None and not _is_text(entry[key]):
            raise DataError(f"{where}: {key} must be a non-empty text, found {entry[key]!r:.60}")
    samples = entry.get("samples_per_paraphrase", 1)
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise DataError(f"{where}: samples_per_paraphrase must be a whole number of at least 1, found {samples!r}")
    prompts = entry["judge_prompts"]
    if not isinstance(prompts, Mapping) or set(prompts) != set(JUDGED):
        found = ", ".join(map(str, prompts)) if isinstance(prompts, Mapping) else type(prompts).__name__
        raise DataError(f"{where}: judge_prompts must hold {' and '.join(JUDGED)}, found {found}")
    for name in JUDGED:
        if not _is_text(prompts[name]):
            raise DataError(f"{where}: judge_prompts.{name} must be a non-empty text, found {prompts[name]!r:.60}")
    return QuestionRow(where, entry["id"], tuple(paraphrases), dict(prompts), entry.get("system"), samples)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_questions(source: str) -> bool:
    """Whether `source` has the ending of a question file."""
    return source.endswith(ENDINGS)


def _examples(request: Request) -> Examples:
    examples = question_prompts(request.source)
    check_file_split(request)
    return Listed(examples)


QUESTIONS = Source(
    name="a question file",
    about="a path that ends in .yaml or .yml: the questions of an emergent-misalignment evaluation",
    takes=("split", "size"),
    read=_examples,
    sample="first",
    files=lambda source: [Path(source)],
)
