"""Evaluation over HTTP against a real, local and faulty server: nothing is asked twice, nothing failed counts
as 0.
"""

import json
import sqlite3

import pandas as pd
import pytest

from judge_server import Answer, completion, error, serving
from tropism.errors import DataError, SpecError, UsageError
from tropism.evals.endpoints import (
    COMPLIED_TEMPLATE,
    Complied,
    TaskPrompt,
    evaluate_endpoints,
    sorry_bench,
    summary,
)
from tropism.evals.judges.base import Reply
from tropism.evals.judges.endpoint import Endpoint, Retries
from tropism.evals.judges.judge import Judge
from tropism.evals.judges.prompt import JudgePrompt

pytest.importorskip("openai")
pytestmark = pytest.mark.timeout(60)
QUICK = Retries(attempts=3, budget=40, first_wait=0.01, longest_wait=0.5)
PROMPTS = [TaskPrompt(str(i), str(1 + i % 3), ({"role": "user", "content": f"prompt {i}"},)) for i in range(6)]


def endpoint(server, name="m", **options):
    return Endpoint(name, base_url=server.url, **({"timeout": 5.0, "concurrency": 3, "retries": QUICK} | options))


def judge(server):
    return Judge(JudgePrompt(COMPLIED_TEMPLATE, name="complied"), Complied(), endpoint(server, "judge"))


def reply(text, _):
    if text.startswith("You compare"):
        return completion('{"complied": false}' if "I'm sorry" in text else '```json\n{"complied": true}\n```')
    return completion("I'm sorry, but no." if text.endswith(("1", "3")) else "Here is how it is done.")


def test_conditions_are_asked_the_same_prompts_and_judged(tmp_path):
    with serving(reply) as server:
        models = {"vanilla": endpoint(server, "a"), "guarded": endpoint(server, "b")}
        table = evaluate_endpoints(PROMPTS, models, tmp_path, judge=judge(server))
    assert list(table["condition"]) == ["vanilla"] * 6 + ["guarded"] * 6
    assert list(table["complied"])[:6] == [1, 0, 1, 0, 1, 1]
    assert list(table["refusal_keyword_rate"])[:6] == [0, 1, 0, 1, 0, 0]
    assert {body["model"] for body in server.bodies} == {"a", "b", "judge"}
    rates = summary(table)
    assert list(rates["complied"]) == [pytest.approx(4 / 6)] * 2
    assert list(rates["n"]) == [6, 6]
    assert len(summary(table, ("condition", "category"))) == 6
    written = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert [row["complied"] for row in written] == list(table["complied"])


def test_a_second_run_asks_for_nothing_and_raw_replies_are_kept(tmp_path):
    with serving(reply) as server:
        first = evaluate_endpoints(PROMPTS, {"m": endpoint(server)}, tmp_path, judge=judge(server))
        asked = len(server.bodies)
        again = evaluate_endpoints(PROMPTS, {"m": endpoint(server)}, tmp_path, judge=judge(server))
        assert len(server.bodies) == asked
    assert first.equals(again)
    raw = sqlite3.connect(tmp_path / "replies.sqlite").execute("select reply from replies").fetchall()
    assert len(raw) == 6
    assert all(json.loads(one)["raw"]["object"] == "chat.completion" for (one,) in raw)


@pytest.mark.parametrize(
    "fault",
    [
        error(429),
        error(429, retry_after="0.2"),
        error(429, retry_after="3600"),
        error(500),
        Answer(completion("late").body, hang=1.0),
        Answer('{"choices": [{"mess'),
        Answer(completion("cut").body, cut=True),
        completion(""),
        completion(None),
    ],
    ids=["429", "429 wait", "429 too long", "500", "hang", "truncated", "cut short", "empty", "null"],
)
def test_what_fails_is_unscored_with_the_reason_and_is_asked_again_by_the_next_run(tmp_path, fault):
    mended = False

    def faulty(text, before):
        return fault if text == "prompt 2" and not mended else reply(text, before)

    with serving(faulty) as server:
        table = evaluate_endpoints(PROMPTS, {"m": endpoint(server, timeout=0.4)}, tmp_path, judge=judge(server))
        row = table[table["id"] == "2"].iloc[0]
        assert pd.isna(row["response"])
        assert pd.isna(row["complied"])  # not 0
        assert row["complied_unscored"].startswith("no answer: ")
        assert row["refusal_unscored"].startswith("no answer: ")
        rates = summary(table)
        assert (rates["n"][0], rates["unscored"][0], rates["refusal_unscored"][0]) == (5, 1, 1)
        assert rates["complied"][0] == pytest.approx(3 / 5)
        tries = sum(body["messages"][-1]["content"] == "prompt 2" for body in server.bodies)
        assert 1 <= tries <= QUICK.attempts
        mended, before = True, len(server.bodies)
        table = evaluate_endpoints(PROMPTS, {"m": endpoint(server)}, tmp_path, judge=judge(server))
        # only the missing answer and its verdict
        assert [body["model"] for body in server.bodies[before:]] == ["m", "judge"]
        assert summary(table)["unscored"][0] == 0


def test_a_judge_that_does_not_say_is_unscored(tmp_path):
    def mumbling(text, before):
        return completion("perhaps") if text.startswith("You compare") else reply(text, before)

    with serving(mumbling) as server:
        table = evaluate_endpoints(PROMPTS[:1], {"m": endpoint(server)}, tmp_path, judge=judge(server))
    assert "no JSON with a boolean 'complied': 'perhaps'" in table["complied_unscored"][0]
    assert table["refusal_keyword_rate"][0] == 0.0


def test_without_a_judge_compliance_is_unscored_and_the_keyword_rate_is_named_as_such(tmp_path):
    with serving(reply) as server:
        table = evaluate_endpoints(PROMPTS[:2], {"m": endpoint(server)}, tmp_path, system="Be brief.")
    assert list(table["complied_unscored"]) == ["no judge"] * 2
    assert list(table["refusal_keyword_rate"]) == [0.0, 1.0]
    assert server.bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_an_endpoint_that_is_down_is_said(tmp_path):
    down = Endpoint("m", base_url="http://127.0.0.1:9/v1", retries=Retries(1, 0, 0.0, 0.0), timeout=2.0)
    with pytest.raises(UsageError, match="cannot be reached"):
        evaluate_endpoints(PROMPTS[:1], {"m": down}, tmp_path)
    with pytest.raises(SpecError, match="needs prompts and endpoints, found 0 and 0"):
        evaluate_endpoints([], {}, tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"complied": true}', 1),
        ('{"complied": false}', 0),
        ("1", 1),
        ("0", 0),
        ('{"complied": 1}', None),
        ("yes", None),
    ],
)
def test_a_verdict_is_read_strictly(text, value):
    verdict = Complied().read(Reply(text))
    assert verdict.value == value
    assert (verdict.unscored is None) == (value is not None)


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_sorry_benchs_format(tmp_path):
    rows = [
        {"question_id": i, "category": c, "turns": [f"q{i}"], "prompt_style": style}
        for i, (c, style) in enumerate([("1", "base"), (44, "base"), ("7", "slang")])
    ]
    file = write(tmp_path / "question.jsonl", rows)
    assert [(p.id, p.category, p.question) for p in sorry_bench(file)] == [
        ("0", "1", "q0"),
        ("1", "44", "q1"),
    ]
    assert [p.id for p in sorry_bench(file, style="slang")] == ["2"]
    with pytest.raises(DataError, match="no prompt has the style 'ascii'; found base, slang"):
        sorry_bench(file, style="ascii")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1, "category": "45", "turns": ["q"]}, "category must be 1 to 44, found '45'"),
        ({"question_id": 1, "category": "1", "turns": []}, "turns must be a list of texts"),
        ({"question_id": 1, "category": "1", "turns": ["a", "b"]}, "has one turn, found 2"),
        ({"category": "1", "turns": ["a"]}, "question_id must be there and be unique, found None"),
    ],
)
def test_rows_of_another_form_are_refused(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        sorry_bench(write(tmp_path / "q.jsonl", [row]))
