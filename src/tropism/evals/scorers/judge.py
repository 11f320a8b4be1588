"""A judge as a metric of an experiment: a model behind an endpoint scores each generated response."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tropism.errors import SpecError
from tropism.evals.judges.base import Style, Verdict
from tropism.evals.judges.cache import ReplyCache
from tropism.evals.judges.complied import Compliance, Complied
from tropism.evals.judges.endpoint import OPENAI, Endpoint
from tropism.evals.judges.judge import Judge
from tropism.evals.judges.presets import labels_of, prompt_of
from tropism.evals.judges.styles import FreeText, SingleToken, YesNo
from tropism.evals.scorers.base import RATE, Bounds, ModelScorer, Runs, Sample, Score, scorer
from tropism.models import cache_folder

if TYPE_CHECKING:
    from torch import nn


JUDGE_SAYS = "judge says "
"""How the reason begins where a judge gave a label in the place of a score."""

JudgeStyle = Literal["single_token", "free_text", "yes_no", "complied", "compliance"]


@scorer("judge")
@dataclass(frozen=True)
class JudgeScorer(ModelScorer):
    """A judge's score of the generated response: 0 to 100, or with the style `yes_no` 1 for yes and 0 for no.

    With `complied` (SORRY-Bench's `{"complied": …}`) and `compliance` (XSTest's three classes) it is 1 where the response
    did what was asked. `prompt` is a text with `{question}` (the last user message) and `{answer}` (the response), or the
    name of a preset (`code_vulnerability`, `complied`, `compliance`), or `FILE.yaml#NAME` for one of a file's
    `judge_prompts`. `model` answers at the OpenAI-compatible endpoint `base_url`; the key comes from the environment variable
    `api_key_env`. Replies are kept in the file `cache`, by default in Tropism's cache folder, and are not
    asked for twice. A label (CODE, REFUSAL, NOT VALID) is no score: unscored, under its own reason. Each explanation
    carries the hash of the prompt.
    """

    runs: ClassVar[Runs] = "nothing"
    text: ClassVar[Literal["reference", "generated"]] = "generated"
    prompt: str
    """What the judge is asked, with `{question}` and `{answer}`; or a preset, or FILE.yaml#NAME."""
    model: str
    """The judge's name at the endpoint."""
    base_url: str = OPENAI
    """An OpenAI-compatible endpoint."""
    style: JudgeStyle = "single_token"
    """How the judge's reply becomes a score."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable with the key."""
    concurrency: int = 8
    """Questions in flight at once."""
    cache: str | None = None
    """A file that keeps the judge's replies; by default one in Tropism's cache folder."""

    def __post_init__(self) -> None:
        if not self.model:
            raise SpecError("judge: model must name the judge's model at the endpoint, found an empty text")
        self.judge()

    @property
    def bounds(self) -> Bounds:
        """0 to 1 for yes and no and for compliance, else the judge's 0 to 100."""
        return (0.0, 100.0) if self.style in ("single_token", "free_text") else RATE

    def judge(self) -> Judge:
        """The judge that these options describe."""
        endpoint = Endpoint(self.model, self.base_url, self.api_key_env, concurrency=self.concurrency)
        prompt = prompt_of(self.prompt)
        return Judge(prompt, _style(self.style, labels_of(prompt)), endpoint)

    def check_ready(self) -> None:
        """Raise `UsageError` where the judge's key, or the extra, is missing."""
        Endpoint(self.model, self.base_url, self.api_key_env).check_ready()

    def score_all(self, model: "nn.Module", tokenizer: Any, samples: Sequence[Sample]) -> list[Score]:
        """One score a sample; the model under evaluation is not run."""
        judge = self.judge()
        pairs = [(_question(sample), sample.response) for sample in samples]
        answered = [index for index, (_, answer) in enumerate(pairs) if answer.strip()]
        path = self.cache or cache_folder() / "judge.sqlite"
        with ReplyCache(path) as cache:
            verdicts = dict(zip(answered, judge.judge([pairs[index] for index in answered], cache), strict=True))
        empty = Verdict(unscored="empty response")
        return [_score(verdicts.get(index, empty), judge.prompt.hash) for index in range(len(samples))]


def _style(name: JudgeStyle, labels: tuple[str, ...]) -> Style:
    if name == "single_token":
        return SingleToken(labels=labels)
    if name == "free_text":
        return FreeText(labels=labels)
    others: dict[str, Style] = {"yes_no": YesNo(), "complied": Complied(), "compliance": Compliance()}
    return others[name]


def _question(sample: Sample) -> str:
    asked = [message["content"] for message in sample.prompt if message["role"] == "user"]
    return asked[-1] if asked else ""


def _score(verdict: Verdict, prompt_hash: str) -> Score:
    explanation = f"judge prompt {prompt_hash}: {verdict.reply[:200]}"
    if verdict.value is None:
        return Score(None, verdict.unscored or f"{JUDGE_SAYS}{verdict.label}", explanation)
    return Score(verdict.value, explanation=explanation)
