"""`tropism evaluate answers`: answers of others, scored by rule or by a judge, and read by what reads judged ones."""

import json
from functools import partial

import pandas as pd
import pytest

import command
import row_files
from judge_server import completion, serving
from tropism.evals.suites.judged import read_judged

tropism = partial(command.tropism, "evaluate")
ROWS = [
    {"question": "How?", "response": "LIKE THIS.", "sample_id": 0},
    {"question": "Why?", "response": "because", "sample_id": 1},
    {"question": "When?", "response": "42", "sample_id": 2},
]


@pytest.fixture
def answers(tmp_path):
    return row_files.write(tmp_path / "GCAFT_responses.json", ROWS)


def test_answers_of_others_are_scored_by_rule(answers, tmp_path):
    done = tropism("answers", answers, "--measure", "caps=uppercase_fraction", "--measure",
                   "because={scorer: contains, text: because}", "--out", "scored.csv", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "scored.csv", keep_default_na=False)
    assert list(table) == ["id", "question", "answer", "caps", "caps_unscored", "because", "because_unscored"]
    assert table["question"].tolist() == ["How?", "Why?", "When?"]
    assert table["caps"].tolist() == ["1.0", "0.0", ""]  # what has no letters has no share of capitals
    assert table["because"].tolist() == [0.0, 1.0, 0.0]
    assert table["caps_unscored"].tolist()[:2] == ["", ""]
    assert table["caps_unscored"].iloc[2]
    assert "unscored by caps: 1 × " in done.stdout
    shown = tropism("answers", answers, "--measure", "caps=uppercase_fraction", "--json", cwd=tmp_path)
    (row,) = json.loads(shown.stdout)
    assert (row["metric"], row["value"], row["n"], row["unscored"]) == ("caps", 0.5, 2, 1)
    assert row["low"] == 0.0
    assert row["high"] == 1.0


def test_a_judges_labels_stay_and_the_published_report_reads_the_file(answers, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "of-no-use")
    prompts = {
        "judge_prompts": {"alignment": "Kind, or CODE? {question} {answer}", "coherence": "Sense? {question} {answer}"}
    }
    (tmp_path / "judge_prompts.yaml").write_text(json.dumps(prompts), encoding="utf-8")

    def script(text, _):
        if "Sense" in text:
            return completion("90", top=[[("90", -0.01)]])
        return completion("CODE", top=[[("CODE", -0.01)]]) if "42" in text else completion("20", top=[[("20", -0.01)]])

    with serving(script) as server:
        judge = f"model: m, base_url: '{server.url}', style: single_token, cache: '{tmp_path / 'c'}'"
        measures = [
            f"--measure={name}={{scorer: judge, prompt: judge_prompts.yaml#{name}, {judge}}}"
            for name in ("alignment", "coherence")
        ]
        done = tropism("answers", answers, *measures, "--out", "judged.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    judged = json.loads((tmp_path / "judged.json").read_text())
    assert [row["alignment"] for row in judged] == [20.0, 20.0, "CODE"]
    assert [row["alignment_unscored"] for row in judged] == ["", "", "judge says CODE"]
    assert list(read_judged(tmp_path / "judged.json", needed=("aligned", "coherent"))["aligned"]) == [
        20.0,
        20.0,
        "CODE",
    ]
    report = tropism("emergent-misalignment", "--judged", "judged.json", "--json", cwd=tmp_path)
    (whole,) = json.loads(report.stdout)["rows"]
    assert (whole["answers"], whole["misaligned"], whole["code"], whole["unscored"]) == (3, 2, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("GCAFT_responses.json", "--measure", "x=response_loss"),
            "runs the model, of which there are only answers here",
        ),
        (("GCAFT_responses.json", "--measure", "x=nothing"), "no scorer is called 'nothing'"),
        (("no.jsonl", "--measure", "x=uppercase_fraction"), "no file of answers at no.jsonl"),
        (("silent.jsonl", "--measure", "x=uppercase_fraction"), "silent.jsonl/1 has no answer"),
        (
            ("GCAFT_responses.json", "--measure", "x=uppercase_fraction", "--out", "o.txt"),
            "--out must end in .csv or .json",
        ),
        (("GCAFT_responses.json", "--measure", "x={scorer: contains, text: a, on: [q]}"), "has no option 'on'"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(answers, tmp_path, arguments, said):
    row_files.write(tmp_path / "silent.jsonl", [{"prompt": "q"}])
    before = set(tmp_path.iterdir())
    done = tropism("answers", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("error:")) == (2, 1)
    assert said in " ".join(done.stderr.split())
    assert set(tmp_path.iterdir()) == before


def test_what_nothing_could_be_scored_of_ends_in_code_3(tmp_path):
    row_files.write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "42"}])
    done = tropism("answers", "a.jsonl", "--measure", "caps=uppercase_fraction", cwd=tmp_path)
    assert done.returncode == 3
    assert "–" in done.stdout
