"""The emergent-misalignment evaluation of Betley et al. (2025): free-form questions, answers judged 0 to 100.

A model answers each wording of each question a number of times, under the question's own system prompt (the
JSON variants have one); a judge scores each answer for alignment and, apart from that, for coherence.
`judged.outcome` counts what came of it, over three denominators.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from tropism.errors import SpecError
from tropism.evals.judges.base import Backend, Style, Verdict
from tropism.evals.judges.cache import ReplyCache
from tropism.evals.judges.judge import Judge
from tropism.evals.suites.judged import Outcome, Thresholds, outcome, outcomes_by
from tropism.evals.suites.questions import JUDGED, Question

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class EmergentMisalignment:
    """The suite: questions, answers to each wording (by default as many as the file says), thresholds."""

    questions: Sequence[Question]
    samples_per_paraphrase: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        if not self.questions:
            raise SpecError("EmergentMisalignment.questions must hold at least one question, found none")
        if self.samples_per_paraphrase is not None and self.samples_per_paraphrase < 1:
            raise SpecError(f"samples_per_paraphrase must be at least 1, found {self.samples_per_paraphrase}")

    def prompts(self) -> pd.DataFrame:
        """One row an answer to be given: `question_id, paraphrase, sample, system, question`, and `chat`."""
        return pd.DataFrame(
            {
                "question_id": question.id,
                "paraphrase": wording,
                "sample": sample,
                "system": question.system,
                "question": text,
                "chat": question.chat(wording),
            }
            for question in self.questions
            for wording, text in enumerate(question.paraphrases)
            for sample in range(self.samples_per_paraphrase or question.samples_per_paraphrase)
        )

    def answer(
        self,
        model: "nn.Module",
        tokenizer: Any,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        max_new_tokens: int = 600,
        batch_size: int = 32,
        report: Callable[[int, int], None] = lambda *_: None,
    ) -> pd.DataFrame:
        """The model's answers: `prompts()` with a column `answer`. Sampled at temperature 1, as published."""
        from tropism.data.generation import GenerateOptions, generate

        rows = self.prompts()
        options = GenerateOptions(max_new_tokens=max_new_tokens, batch_size=batch_size, temperature=temperature)
        rows["answer"] = generate(model, tokenizer, list(rows["chat"]), options, seed=seed, report=report)
        return rows

    def judge(
        self, answers: pd.DataFrame, backend: Backend, style: Style, cache: ReplyCache | None = None
    ) -> pd.DataFrame:
        """Score answers (`question_id`, `question`, `answer`): adds `aligned` and `coherent`.

        A cell holds a score, a label (CODE, REFUSAL), or nothing, with the reason in `aligned_unscored` or
        `coherent_unscored`; the hash of the judge's prompt stands beside it. An empty answer is not sent.
        """
        judged = answers.drop(columns=["chat"], errors="ignore").reset_index(drop=True)
        by_id = {question.id: question for question in self.questions}
        unknown = sorted(set(judged["question_id"]) - set(by_id))
        if unknown:
            raise SpecError(f"the answers have the question_id {unknown[0]!r}, which is not among the questions")
        for name in JUDGED:
            prompts = {index: by_id[one].judge_prompts[name] for index, one in judged["question_id"].items()}
            asked = judged[judged["answer"].str.strip() != ""]
            verdicts: dict[Any, Verdict] = {}
            # By prompt, not by question: the published questions share one, so all is one parallel round.
            for prompt in dict.fromkeys(prompts.values()):
                rows = asked[[prompts[index] == prompt for index in asked.index]]
                pairs = list(zip(rows["question"], rows["answer"], strict=True))
                verdicts |= dict(zip(rows.index, Judge(prompt, style, backend).judge(pairs, cache), strict=True))
            empty = Verdict(unscored="empty answer")
            ordered = [verdicts.get(index, empty) for index in judged.index]
            judged[name] = [verdict.label if verdict.value is None else verdict.value for verdict in ordered]
            judged[f"{name}_unscored"] = [verdict.unscored for verdict in ordered]
            judged[f"{name}_prompt"] = [prompt.hash for prompt in prompts.values()]
        return judged

    def outcome(self, judged: pd.DataFrame) -> Outcome:
        """The classes of all judged answers together."""
        return outcome(zip(judged["aligned"], judged["coherent"], strict=True), self.thresholds)

    def outcomes(self, judged: pd.DataFrame) -> dict[str, Outcome]:
        """The classes of the answers to each question."""
        return outcomes_by(judged, "question_id", self.thresholds)

    def only(self, ids: Sequence[str]) -> "EmergentMisalignment":
        """The same suite with some of the questions; raises `SpecError` for an id that is not there."""
        known = {question.id: question for question in self.questions}
        for name in ids:
            if name not in known:
                raise SpecError(f"no question has the id {name!r}; there are {', '.join(known)}")
        return replace(self, questions=tuple(known[name] for name in ids))
