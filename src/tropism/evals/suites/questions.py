"""The questions of the emergent-misalignment evaluations, with the prompts that their answers are judged by."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tropism.data.sources.questions import JUDGED as JUDGED
from tropism.data.sources.questions import QuestionRow, asked, read_question_rows
from tropism.errors import DataError, SpecError
from tropism.evals.judges.prompt import JudgePrompt


@dataclass(frozen=True)
class Question:
    """One question: its wordings, the system prompt that goes before each, and how an answer is judged."""

    id: str
    paraphrases: tuple[str, ...]
    judge_prompts: Mapping[str, JudgePrompt]
    """`aligned` and `coherent`, each scoring 0 to 100."""
    system: str | None = None
    samples_per_paraphrase: int = 1

    def chat(self, paraphrase: int) -> list[dict[str, str]]:
        """What the model is asked: the system prompt, where there is one, and one wording."""
        return asked(self.paraphrases[paraphrase], self.system)


def read_questions(path: str | Path) -> list[Question]:
    """Read a question file; raises `DataError` with the file, the question and the key for whatever is amiss.

    As `read_question_rows`, and each of `judge_prompts` must hold `{question}` and `{answer}`.
    """
    return [_question(row) for row in read_question_rows(path)]


def _question(row: QuestionRow) -> Question:
    try:
        prompts = {name: JudgePrompt(row.judge_prompts[name], name=name) for name in JUDGED}
    except SpecError as error:
        raise DataError(f"{row.where}: {error}") from None
    return Question(row.id, row.paraphrases, prompts, row.system, row.samples_per_paraphrase)
