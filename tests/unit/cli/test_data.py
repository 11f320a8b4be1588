"""`tropism data export` from the command line."""

import pytest
from typer.testing import CliRunner

import tiny_experiment
from tropism.cli.app import app
from tropism.data import sources
from tropism.errors import SpecError, UsageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    tiny_experiment.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["data", "export", "tiny.yaml", *arguments])


def test_a_condition_is_written_and_counted(here):
    done = run("--condition", "baseline", "--seed", "1", "--out", "train.jsonl")
    assert done.exit_code == 0, done.exception
    assert done.output == "8 rows written to train.jsonl\n"
    assert all(example.response.isupper() for example in sources.load("train.jsonl"))
    assert run("--directions", "caps", "--out", "pairs.jsonl").output == "12 rows written to pairs.jsonl\n"
    assert run("--data", "held_out", "--set", "data.held_out.size=2", "--out", "held.jsonl").output.startswith("2 rows")


@pytest.mark.parametrize(
    ("arguments", "message", "kind"),
    [
        ((), "give one of --condition, --adapter, --data, --directions; found none of them", UsageError),
        (("--condition", "plain", "--data", "held_out"), "found --condition and --data", UsageError),
        (("--data", "held_out", "--seed", "0"), "--seed goes with --condition, found --data", UsageError),
        (("--condition", "caft"), "no condition is called 'caft'", SpecError),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(here, arguments, message, kind):
    done = run(*arguments, "--out", "out.jsonl")
    assert isinstance(done.exception, kind)
    assert message in str(done.exception)
    assert not (here / "out.jsonl").exists()
    assert isinstance(run("--condition", "plain", "--out", "out.csv").exception, UsageError)
