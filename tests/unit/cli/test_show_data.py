"""`tropism show-data` from the command line: what is learned, of an experiment and of a data file."""

import json

import pytest
from typer.testing import CliRunner

import tiny_experiment
from tropism.cli.app import app
from tropism.errors import SpecError, UsageError

CHAT = {
    "messages": [{"role": "user", "content": "hi <b>"}, {"role": "assistant", "content": "<script>yes</script> 🙂"}]
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    tiny_experiment.write(tmp_path)
    rows = [CHAT, {"text": "once upon"}, {"messages": CHAT["messages"][:1]}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["show-data", *arguments])


def test_an_experiment_shows_the_rows_of_its_conditions(here):
    done = run("tiny.yaml", "--rows", "1")
    assert done.exit_code == 0, done.exception
    for condition in ("plain", "baseline", "guarded"):
        assert f"condition {condition}, example word_problems/train/0" in done.output
    assert done.output.count("⟦") == done.output.count("⟧") == 3
    assert "<|im_end|>⟧" in done.output
    assert run("tiny.yaml", "--condition", "plain", "--rows", "2").output.count("⟦") == 2


def test_a_data_file_shows_what_is_learned_and_what_is_refused(here):
    done = run("data.jsonl", "--model", "model")
    assert done.exit_code == 0, done.exception
    assert "⟦<script>yes</script> 🙂<|im_end|>⟧" in done.output
    assert "⟦nce upon<|im_end|>⟧" in done.output  # nothing predicts a text's first token
    assert "refused: data.jsonl/3: the chat has no assistant turn to learn" in done.output
    assert "⟦" not in done.output.split("refused")[1]
    every = run("data.jsonl", "--model", "model", "--supervise", "all_tokens", "--rows", "1").output
    assert "⟦user" in every


def test_the_page_shows_text_as_text_and_learned_tokens_marked(here):
    assert run("data.jsonl", "--model", "model", "--html", "out/page.html").exit_code == 0
    page = (here / "out" / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count('class="t l"') > 20
    assert 'class="refused"' in page


@pytest.mark.parametrize(
    ("arguments", "message", "kind"),
    [
        (("none.jsonl",), "no such file: none.jsonl", UsageError),
        (("data.jsonl",), "--model is required with a data file", UsageError),
        (("data.jsonl", "--model", "model", "--condition", "a"), "--condition is for an experiment", UsageError),
        (("tiny.yaml", "--supervise", "last_turn"), "--supervise is for a data file", UsageError),
        (("tiny.yaml", "--condition", "caft"), "no condition is called 'caft'; available: plain", SpecError),
        (("data.jsonl", "--model", "model", "--template-kwargs", "x"), "--template-kwargs must be JSON", UsageError),
        (("data.jsonl", "--model", "model", "--template-kwargs", "[]"), "must be an object", UsageError),
    ],
)
def test_a_mistake_is_one_sentence(here, arguments, message, kind):
    done = run(*arguments)
    assert isinstance(done.exception, kind)
    assert message in str(done.exception)
