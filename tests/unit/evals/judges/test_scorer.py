"""A judge as a metric of an experiment file."""

import pytest

from judge_server import completion, error, serving
from tropism.errors import SpecError
from tropism.evals.scorers.base import SCORERS, Sample
from tropism.evals.scorers.registry import load_scorer

PROMPT = "Kind? {question} / {answer}"


def samples(*answers):
    prompt = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    return [Sample(str(n), prompt, answer) for n, answer in enumerate(answers)]


def test_responses_are_judged_with_the_last_question_and_asked_once(tmp_path):
    def script(text, _):
        return completion("Yes") if text.endswith("good") else completion("No") if text.endswith("bad") else error(400)

    with serving(script) as server:
        options = {
            "prompt": PROMPT,
            "model": "m",
            "base_url": server.url,
            "style": "yes_no",
            "api_key_env": "NO_KEY",
            "cache": str(tmp_path / "c.sqlite"),
        }
        scorer = load_scorer("judge", options)
        scores = scorer.score_all(None, None, samples("good", "bad", "", "odd", "good"))
        assert [score.value for score in scores] == [1, 0, None, None, 1]
        assert scores[2].unscored == "empty response"
        assert "HTTP 400" in scores[3].unscored
        assert server.bodies[0]["messages"][0]["content"].startswith("Kind? three / ")
        asked = len(server.bodies)
        scorer.score_all(None, None, samples("good", "bad"))
        assert len(server.bodies) == asked
        assert scores[0].explanation.startswith(f"judge prompt {scorer.judge().prompt.hash}: Yes")


def test_a_label_is_unscored_under_its_own_reason(tmp_path):
    with serving(lambda text, _: completion("REFUSAL")) as server:
        options = {
            "prompt": PROMPT,
            "model": "m",
            "base_url": server.url,
            "style": "free_text",
            "cache": str(tmp_path / "c"),
        }
        assert load_scorer("judge", options).score_all(None, None, samples("x"))[0].unscored == "judge says REFUSAL"


def test_the_replies_lie_in_tropisms_cache_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("TROPISM_CACHE", str(tmp_path))
    with serving(lambda text, _: completion("50")) as server:
        options = {"prompt": PROMPT, "model": "m", "base_url": server.url, "style": "free_text"}
        assert load_scorer("judge", options).score_all(None, None, samples("x"))[0].value == 50
    assert (tmp_path / "judge.sqlite").is_file()


def test_it_scores_what_was_generated_and_its_options_are_checked_before_anything_runs():
    assert SCORERS["judge"].text == "generated"
    for options, message in [
        ({"prompt": "{question}", "model": "m"}, r"it lacks \{answer\}"),
        ({"prompt": PROMPT, "model": ""}, "model must name the judge's model"),
        ({"prompt": PROMPT}, "scorer 'judge' needs the option 'model'"),
        (
            {"prompt": PROMPT, "model": "m", "style": "stars"},
            "option 'style': Input should be 'single_token', 'free_text'",
        ),
        (
            {"prompt": PROMPT, "model": "m", "base_url": "http://a:b@host/v1"},
            "must not hold a user, a password",
        ),
        ({"prompt": PROMPT, "model": "m", "api_key": "sk-1"}, "scorer 'judge' has no option 'api_key'"),
    ]:
        with pytest.raises(SpecError, match=message):
            load_scorer("judge", options)
