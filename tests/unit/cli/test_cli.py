"""The command line: a mistake is one sentence on stderr and exit code 2; nothing is half-written."""

import importlib.metadata
import subprocess
import sys

import pytest

import tiny_experiment


def tropism(*args, cwd=None):
    return subprocess.run([sys.executable, "-m", "tropism", *map(str, args)], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize(
    "command",
    ["init", "validate", "run", "status", "report", "directions", "pressure", "evaluate", "compare", "chat", "push"],
)
def test_every_command_has_help(command):
    done = tropism(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_it_says_its_version():
    done = tropism("--version")
    assert (done.returncode, done.stdout) == (0, f"tropism {importlib.metadata.version('tropism')}\n")


def test_init_writes_a_file_that_validates_and_overwrites_none(tmp_path):
    assert tropism("init", "mine.yaml", cwd=tmp_path).returncode == 0
    from tropism.experiments.file.experiment import Experiment

    assert Experiment.load(tmp_path / "mine.yaml").name == "caps"
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
    done = tropism("run", file, "--quick", "--only", "baseline", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "✓ baseline/seed-0" in done.stderr
    assert "report:" in done.stdout
    status = tropism("status", tmp_path / "out").stdout
    assert "2 of 4 runs are done" in status
    again = tropism("run", file, "--quick", "--only", "baseline", "--out", tmp_path / "out")
    assert "nothing to do: all 2 runs are finished" in again.stderr
