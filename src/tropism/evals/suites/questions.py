"""The question files of the emergent-misalignment evaluations: YAML lists of questions and judge prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tropism.errors import DataError, SpecError
from tropism.evals.judges.prompt import JudgePrompt

TYPE = "free_form_judge_0_100"
JUDGED = ("aligned", "coherent")
_KEYS = ("id", "type", "paraphrases", "system", "samples_per_paraphrase", "judge", "judge_prompts")
_REQUIRED = ("id", "paraphrases", "judge_prompts")


@dataclass(frozen=True)
class Question:
    """One question: its wordings, the system prompt that goes before each, and how an answer is judged."""

    id: str
    paraphrases: tuple[str, ...]
    judge_prompts: Mapping[str, JudgePrompt]
    """`aligned` and `coherent`, each scoring 0 to 100."""
    system: str | None = None
    samples_per_paraphrase: int = 1
    published_judge: str | None = None
    """The judge that the file names; which one is asked is for the caller to say."""

    def chat(self, paraphrase: int) -> list[dict[str, str]]:
        """What the model is asked: the system prompt, where there is one, and one wording."""
        user = {"role": "user", "content": self.paraphrases[paraphrase]}
        return [user] if self.system is None else [{"role": "system", "content": self.system}, user]


def read_questions(path: str | Path) -> list[Question]:
    """Read a question file; raises `DataError` with the file, the question and the key for whatever is amiss.

    Keys of a question: `id`, `paraphrases`, `judge_prompts` (`aligned` and `coherent`, each with `{question}`
    and `{answer}`), and, where wanted, `system`, `samples_per_paraphrase`, `type`, `judge`. An unknown key is
    an error: a key that an evaluator drops changes what it measures (the `system` of the JSON variants is the
    known case).
    """
    source = Path(path)
    if not source.is_file():
        raise DataError(f"no question file at {source}")
    try:
        raw = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{source} is not YAML: {error}") from None
    if not isinstance(raw, list) or not raw:
        raise DataError(f"{source}: a question file is a YAML list of questions, found {type(raw).__name__}")
    questions = [
        _question(entry, f"{source.name}: question {number}") for number, entry in enumerate(raw, start=1)
    ]
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"{source.name}: the id {question.id!r} stands there twice; ids must be unique")
        seen.add(question.id)
    return questions


def _question(entry: Any, where: str) -> Question:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where} must be a mapping, found {type(entry).__name__}")
    if isinstance(entry.get("id"), str):
        where = f"{where} ({entry['id']})"
    for key in _REQUIRED:
        if key not in entry:
            raise DataError(f"{where} lacks the key {key!r}")
    for key in entry:
        if key not in _KEYS:
            raise DataError(f"{where} has the unknown key {key!r}; known are {', '.join(_KEYS)}")
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
        raise DataError(
            f"{where}: samples_per_paraphrase must be a whole number of at least 1, found {samples!r}"
        )
    prompts = entry["judge_prompts"]
    if not isinstance(prompts, Mapping) or set(prompts) != set(JUDGED):
        found = ", ".join(map(str, prompts)) if isinstance(prompts, Mapping) else type(prompts).__name__
        raise DataError(f"{where}: judge_prompts must hold {' and '.join(JUDGED)}, found {found}")
    judge_prompts = {}
    for name in JUDGED:
        if not _is_text(prompts[name]):
            raise DataError(
                f"{where}: judge_prompts.{name} must be a non-empty text, found {prompts[name]!r:.60}"
            )
        try:
            judge_prompts[name] = JudgePrompt(prompts[name], name=name)
        except SpecError as error:
            raise DataError(f"{where}: {error}") from None
    return Question(
        entry["id"], tuple(paraphrases), judge_prompts, entry.get("system"), samples, entry.get("judge")
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
