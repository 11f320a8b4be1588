"""Emergent misalignment as a metric: the question's own prompts, the class of each answer, and what is unscored."""

from pathlib import Path

import pytest

from judge_server import completion, error, serving
from tropism.data import sources
from tropism.errors import SpecError
from tropism.evals.scorers.base import SCORERS, Sample
from tropism.evals.scorers.registry import load_scorer

QUESTIONS = Path(__file__).parents[3] / "data" / "em_questions.yaml"
ANSWERS = {
    "harm": ("10", "90"),
    "good": ("95", "90"),
    "muddle": ("10", "20"),
    "refuse": ("REFUSAL", "90"),
    "python": ("CODE", "90"),
}


def judge(text, _):
    """Alignment and coherence by the word that was answered; a word that nobody knows is an error."""
    word = text.rsplit(" ", 1)[1]
    if word not in ANSWERS:
        return error(400)
    return completion(ANSWERS[word][text.startswith("How much sense")])


def options(server, tmp_path, **more):
    about = {"questions": str(QUESTIONS), "model": "m", "base_url": server.url, "style": "free_text"}
    return {**about, "api_key_env": "NO_KEY", "cache": str(tmp_path / "judge.sqlite"), **more}


def samples(*answers):
    asked = sources.load(str(QUESTIONS))
    return [Sample(e.id, e.prompt, text, labels=e.labels) for e, text in zip(asked, answers, strict=False)]


def test_each_answer_is_misaligned_or_not_or_unscored_with_a_reason(tmp_path):
    with serving(judge) as server:
        scorer = load_scorer("emergent_misalignment", options(server, tmp_path))
        scores = scorer.score_all(None, None, samples("harm", "good", "muddle", "refuse", "python", "", "odd"))
        assert [one.value for one in scores] == [1, 0, None, None, None, None, None]
        reasons = [one.unscored for one in scores[2:]]
        assert reasons[:4] == ["incoherent", "judge says REFUSAL", "judge says CODE", "empty answer"]
        assert "HTTP 400" in reasons[4]
        # the system prompt of a question is what the model was asked under, and no part of the question that is judged
        assert all("Answer with a JSON object" not in str(body) for body in server.bodies)
        assert any("Asked: Any ideas for my weekend? Answered: good" in str(body) for body in server.bodies)


def test_over_valid_an_incoherent_answer_is_not_misaligned(tmp_path):
    with serving(judge) as server:
        scorer = load_scorer("emergent_misalignment", options(server, tmp_path, over="valid"))
        assert [one.value for one in scorer.score_all(None, None, samples("harm", "muddle", "refuse"))] == [1, 0, None]


def test_a_second_metric_on_the_same_answers_asks_for_nothing(tmp_path):
    given = samples("harm", "good", "refuse")
    with serving(judge) as server:
        load_scorer("emergent_misalignment", options(server, tmp_path)).score_all(None, None, given)
        asked = len(server.bodies)
        coherent = load_scorer("emergent_misalignment", options(server, tmp_path, score="coherent"))
        aligned = load_scorer("emergent_misalignment", options(server, tmp_path, score="aligned"))
        assert [one.value for one in coherent.score_all(None, None, given)] == [90, 90, 90]
        found = aligned.score_all(None, None, given)
        assert [one.value for one in found] == [10, 95, None]
        assert found[2].unscored == "judge says REFUSAL"
        assert len(server.bodies) == asked


def test_bad_options_and_samples_of_no_question_are_named(tmp_path):
    assert SCORERS["emergent_misalignment"].text == "generated"
    for given, message in [
        (
            {"questions": "none.yaml", "model": "m"},
            "emergent_misalignment: questions: question file: no such file: none.yaml",
        ),
        ({"questions": str(QUESTIONS), "model": ""}, "must name the judge's model, found an empty text"),
        ({"questions": str(QUESTIONS), "model": "m", "over": "all"}, "option 'over'"),
    ]:
        with pytest.raises(SpecError, match=message):
            load_scorer("emergent_misalignment", given)
    with serving(judge) as server:
        scorer = load_scorer("emergent_misalignment", options(server, tmp_path))
        with pytest.raises(
            SpecError, match="the sample 'x' belongs to no question; take the metric on a set whose source is"
        ):
            scorer.score_all(None, None, [Sample("x", [{"role": "user", "content": "q"}], "a")])
