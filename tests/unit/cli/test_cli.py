"""The command line: a mistake is one sentence on stderr and exit code 2; nothing is half-written."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fake_runs
import tiny_experiment
from command import tropism
from tropism.experiments.file.schema import URL


def process(*args):
    """The command as a person starts it."""
    return subprocess.run([sys.executable, "-m", "tropism", *map(str, args)], capture_output=True, text=True)


@pytest.mark.parametrize(
    "command",
    [
        "init",
        "validate",
        "run",
        "status",
        "report",
        "directions",
        "pressure",
        "evaluate",
        "compare",
        "chat",
        "push",
        "schema",
    ],
)
def test_every_command_has_help(command):
    done = tropism(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    if "COMMAND" not in done.stdout:  # a group's own commands have them
        assert "--verbose" in done.stdout
        assert "--quiet" in done.stdout


def test_it_says_its_version():
    done = process("--version")
    assert (done.returncode, done.stdout) == (0, f"tropism {importlib.metadata.version('tropism')}\n")


def test_init_writes_a_file_that_validates_and_overwrites_none(tmp_path):
    assert tropism("init", "mine.yaml", cwd=tmp_path).returncode == 0
    from tropism.experiments.file.experiment import Experiment

    assert Experiment.load(tmp_path / "mine.yaml").name == "caps"
    first = (tmp_path / "mine.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema={URL}"
    again = tropism("init", "mine.yaml", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (
        2,
        "error: mine.yaml exists; give another name, or --force to overwrite it\n",
    )


def test_validate_says_what_an_experiment_costs(tmp_path):
    done = tropism("validate", tiny_experiment.write(tmp_path))
    assert done.returncode == 0, done.stderr
    for part in (
        "tiny is valid: 3 conditions × 2 seeds",
        "7 runs",
        "tokens in 12 steps",
        "GiB",
        "2 seeds give no interval",
    ):
        assert part in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("run", "nowhere.yaml"), "no experiment file at nowhere.yaml"),
        (("run", "{file}", "--set", "train.learning_rat=1"), "train.learning_rat: unknown key"),
        (("run", "{file}", "--set", "nonsense"), "--set takes KEY=VALUE"),
        (
            ("run", "{file}", "--set", "train.checkpointing=on"),
            "train.checkpointing: input should be a valid boolean, found 'on'",
        ),
        (("run", "{file}", "--set", "train=[1"), "--set train line 1: not valid YAML"),
        (("run", "{file}", "--seeds", "one"), "--seeds takes numbers separated by commas, found 'one'"),
        (("run", "{file}", "--only", "guardd"), "--only: no condition is called 'guardd'"),
        (("run", "{file}", "--set", "model=./nowhere"), "'./nowhere' is a path, and there is no such folder"),
        (("status", "."), "holds no experiment.yaml"),
        (("report", "nowhere"), "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(tmp_path, args, message):
    file = tiny_experiment.write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = (
        tropism(*(a.format(file=file) for a in args), "--out", "out", cwd=tmp_path)
        if args[0] == "run"
        else tropism(*args, cwd=tmp_path)
    )
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_ends_in_a_table_and_status_knows_it(tmp_path):
    file = tiny_experiment.write(tmp_path)
    done = process("run", file, "--quick", "--only", "baseline", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "✓ baseline/seed-0" in done.stderr
    assert "report:" in done.stdout
    status = tropism("status", tmp_path / "out").stdout
    assert "2 of 4 runs are done" in status
    again = tropism("run", file, "--quick", "--only", "baseline", "--out", tmp_path / "out")
    assert "nothing to do: all 2 runs are finished" in again.stderr


def test_an_override_is_read_as_the_file_is(tmp_path):
    file = tiny_experiment.write(tmp_path)
    done = tropism("validate", file, "--set", "measure={shout: {scorer: uppercase_fraction, on: [held_out]}}", "--json")
    assert done.returncode == 0, done.stderr


def test_validate_as_json_says_what_it_costs_or_why_not(tmp_path):
    file = tiny_experiment.write(tmp_path)
    done = tropism("validate", file, "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["valid"], said["runs"], said["size"]["training_steps"]) == (0, True, 7, 12)
    wrong = tropism("validate", file, "--json", "--set", "seeds=3")
    assert wrong.returncode == 2
    assert json.loads(wrong.stdout) == {"valid": False, "error": wrong.stderr.removeprefix("error: ").rstrip("\n")}


def test_a_verbose_error_shows_where_it_came_from(tmp_path):
    done = tropism("validate", "nowhere.yaml", "-v", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: no experiment file at nowhere.yaml; 'tropism init nowhere.yaml' writes one\n")
    assert tropism("-v", "validate", "nowhere.yaml", cwd=tmp_path).stderr == done.stderr


def test_status_says_with_its_exit_code_that_runs_failed(tmp_path):
    finished = fake_runs.caps(tmp_path / "good")
    done = tropism("status", finished, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failed"] == 0
    run = next(path.parent for path in sorted(Path(finished).rglob("DONE.json")) if path.parent.name != "base")
    (run / "DONE.json").unlink()
    (run / "FAILED.json").write_text('{"error": "the loss is nan"}', encoding="utf-8")
    done = tropism("status", finished, "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["failed"]) == (3, 1)
    assert [row["state"] for row in said["runs"] if row["state"].startswith("failed")] == ["failed: the loss is nan"]
    assert tropism("status", finished).returncode == 3


def test_compare_as_json_has_every_row(tmp_path):
    folders = [fake_runs.caps(tmp_path / name) for name in ("one", "two")]
    done = tropism("compare", *folders, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len({row["experiment"] for row in rows}) == 2
    assert all(isinstance(row["value"], float) for row in rows)


def test_evaluate_as_json(tmp_path):
    judged = Path(__file__).parents[2] / "data" / "em_judged.csv"
    done = tropism("evaluate", "emergent-misalignment", "--judged", judged, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert (rows[0]["group"], rows[0]["answers"], rows[0]["misaligned"]) == ("all", 14, 4)
    listed = json.loads(tropism("evaluate", "scorers", "--json").stdout)
    length = next(one for one in listed if one["scorer"] == "length")
    assert "unit" in length["options"]


def test_a_run_that_fails_ends_in_exit_code_3(tmp_path):
    file = tiny_experiment.write(tmp_path, ("learning_rate: 1.0e-3", "learning_rate: 1.0e+30"))
    done = tropism("run", file, "--quick", "--only", "baseline", "--out", tmp_path / "out", "-q")
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert done.stderr.startswith("failed, or could not be scored (also listed in the report):\n  baseline/seed-0")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_can_complete(shell, monkeypatch):
    monkeypatch.setenv("_TROPISM_COMPLETE", f"source_{shell}")
    done = subprocess.run([Path(sys.executable).with_name("tropism")], capture_output=True, text=True)
    assert "tropism" in done.stdout
    assert "COMPLETE" in done.stdout
