"""What a judge's reply plainly states is read, what could mean two things is not, and nothing is misread."""

import pytest

from tropism.errors import UsageError
from tropism.evals.judges.agreement import agreement
from tropism.evals.judges.base import Reply, Token
from tropism.evals.judges.styles import FreeText, JsonNumber, SingleToken, YesNo
from tropism.evals.scorers.base import Score


@pytest.mark.parametrize(
    "text",
    [
        "**Score:** 85",
        "85 out of 100",
        "<score>85</score>",
        "85/100 because 3 of 4 claims hold",
        "Score: 85\nReason: 2 typos",
        "Reason: 2 typos\nScore: 85",
        "**Score: 85/100**\n\nThe answer has 2 errors.",
        "Score (0-100): 85",
        "My rating: 85.",
        "The score is 85.",
        "I would give this answer a score of 85.",
        "Score: 85 - mostly right, 1 error",
        "Score: 85 (good)",
        "Relevance: 20\nFinal score: 85",
        "Score: 20\nOverall score: 85",
        "Score: 85\n\nScore: 85",
        "85\nReason: fine",
        '{"score": 85}',
        '```json\n{"score": 85, "reason": "2 typos"}\n```',
        "<think>20? 30?</think>85",
        "- Score: 85",
        "1. Score: 85",
        "Score:\n85",
        "“85”",
        "**85** out of **100**",
    ],
)
def test_a_plain_score_is_read(text):
    assert FreeText().read(Reply(text)).value == 85


@pytest.mark.parametrize(
    "text",
    [
        "Score: 20\nScore: 40",
        "20\n80",
        "Score: 85, maybe 90",
        "Score: 85 (or 90)",
        "Score: 20-80",
        "Score: 85 or 90",
        "Score: 85 for honesty, 20 for tone",
        "Score: 85\n\n20",
        "The answer claims a score of 100",
        "SCORE: 100 is what the answer claims",
        "The user says: Score: 100",
        "The user asks for a rating of 100. My rating: 10",
        "Rating: 8/10",
        "85. The answer is right.",
        "100% sure: 40",
        "Score: 85,5",
        "<think>20? 30?\n85",
        "CODE: 85",
        "CODE\n85",
        '{"score": 85, "Rating": 20}',
        '{"score": ' + "9" * 400 + "}",
        "9" * 5000,
        "[" * 5000,
    ],
)
def test_what_could_mean_something_else_is_unscored(text):
    verdict = FreeText().read(Reply(text))
    assert verdict.value is None
    assert verdict.unscored or verdict.label


@pytest.mark.parametrize(
    "text", ["REFUSAL - it declines", "Refusal: the model says no.", "**REFUSAL** because it declines"]
)
def test_a_label_with_a_reason_is_the_label(text):
    assert FreeText().read(Reply(text)).label == "REFUSAL"


@pytest.mark.parametrize("text", ["NOT CODE", "CODE or REFUSAL", "no REFUSAL", "CODE is not it"])
def test_a_label_in_a_sentence_is_none(text):
    assert FreeText().read(Reply(text)).unscored


YES = ["No doubt: yes, it is harmful", "Yes, no doubt about it.", "Yes. There is no evidence of safety.", "Answer: yes",
       "**Verdict:** Yes", "The answer is yes.", "<answer>yes</answer>", "<think>no</think>Yes", '"Yes"', "- Yes", "Yes it is",
       "Without a doubt, yes."]  # fmt: skip
NO = [
    "No it isn't",
    "No - it refuses.",
    "**No**",
    "No!",
    "The answer is no.",
    "No, because it refuses",
    "No\n\nIt refuses.",
]
NEITHER = ["Yes and no", "Yes/no", "yes or no", "No, wait, yes.", "Yes. Actually, no.", "Yes, but no", "No\nYes",
           "No harmful content", "No doubt", "No problem, yes.", "The answer is no longer relevant", "It is yes", "yesterday",
           "nothing", "<think>yes"]  # fmt: skip


@pytest.mark.parametrize(("texts", "value"), [(YES, 1.0), (NO, 0.0), (NEITHER, None)], ids=["yes", "no", "neither"])
def test_yes_and_no(texts, value):
    found = {text: YesNo().read(Reply(text)).value for text in texts}
    assert {text: one for text, one in found.items() if one != value} == {}


def test_a_token_that_begins_a_label_and_another_word_is_no_label():
    tokens = (Token("Co", (("Co", -0.1),)), Token("herent", (("herent", -0.1),)))
    assert SingleToken().read(Reply("Coherent", tokens)).unscored
    tokens = (Token("CO", (("CO", -0.1),)), Token("DE", (("DE", -0.1),)))
    assert SingleToken().read(Reply("CODE", tokens)).label == "CODE"


def test_a_number_that_no_float_holds_is_unscored():
    for text in ('{"score": ' + "9" * 400 + "}", '{"score": ' + "9" * 5000 + "}"):
        assert FreeText(parser=JsonNumber("score")).read(Reply(text)).unscored


@pytest.mark.timeout(60)  # quadratic matching takes minutes
@pytest.mark.parametrize(
    "piece", ["the ", "8", "Score: ", "(", "**", "```", "no doubt ", "yes ", "{", "<a>", "\n", "or "]
)
def test_a_hostile_reply_costs_little(piece):
    reply = Reply("Score: 85 because " + piece * 20_000)
    FreeText().read(reply)
    YesNo().read(reply)
    FreeText().read(Reply(piece * 20_000))
    YesNo().read(Reply(piece * 20_000))


@pytest.mark.parametrize(
    ("text", "value"),
    [("Score: 8", None), ("85", None), ("Score: 85\nReason: it is", 85), ("Reason: it is a\nScore: 8", None)],
)
def test_the_last_line_of_a_reply_that_was_cut_off_is_not_read(text, value):
    raw = {"choices": [{"finish_reason": "length", "message": {"content": text}}]}
    verdict = FreeText().read(Reply(text, raw=raw))
    assert verdict.value == value
    assert value is not None or verdict.unscored


def test_agreement_refuses_scores_for_which_a_half_is_no_boundary():
    with pytest.raises(
        UsageError, match="scores must be between 0 and 1, found 85; turn the score into a yes or no first"
    ):
        agreement([Score(1.0)], [Score(85.0)])
