"""Nothing that a command prints ends in `UnicodeEncodeError`: a Windows code page, an ASCII locale."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fake_runs
import tiny_experiment
from tropism.cli.printable import SPELT, make_printable

# Each command in one process, since starting one takes longer than the command.
WORKER = """
import shlex, sys
from tropism.cli import main
for line in sys.argv[1:]:
    sys.argv = ["tropism", *shlex.split(line)]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            print("exit code", ended.code, "of", line)
"""


def run(encoding, *commands, cwd):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, "-c", WORKER, *commands], capture_output=True, cwd=cwd, env=environment, check=False
    )


@pytest.mark.slow
def test_a_whole_run_and_its_report_on_a_windows_code_page(tmp_path):
    question = "question: Does the machinery work?"
    file = tiny_experiment.write(tmp_path, (question, "question: Does 機 work → so?"))
    for name in ("caps", "other"):
        fake_runs.caps(tmp_path / name, prompts=4)
    done = run(
        "cp1252", f"validate {file.name}", f"run {file.name} --only baseline --seeds 0 --out out", "status out", "report caps",
        "compare caps other", "run --help", "evaluate emergent-misalignment --help", "run missing→.yaml",
        cwd=tmp_path,
    )  # fmt: skip
    said, errors = done.stdout.decode("cp1252"), done.stderr.decode("cp1252")
    assert done.returncode == 0, errors
    assert "Traceback" not in errors
    assert [line for line in said.splitlines() if line.startswith("exit code")] == ["exit code 2 of run missing->.yaml"]
    assert "Does \\u6a5f work -> so?" in said
    assert "v unwanted" in said
    assert "tiny is valid: 3 conditions × 2 seeds" in said  # what the code page has stays
    assert "+ baseline/seed-0" in errors


def test_what_is_spelt_out_is_ascii_and_utf8_is_left_alone(monkeypatch):
    assert all(text.isascii() for text in SPELT.values())
    ascii_bytes, utf8_bytes = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(ascii_bytes, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(utf8_bytes, encoding="UTF-8"))
    make_printable()
    for stream in (sys.stdout, sys.stderr):
        print("κ ↓ 機", end="", file=stream, flush=True)
    assert ascii_bytes.getvalue() == b"kappa v \\u6a5f"
    assert utf8_bytes.getvalue().decode() == "κ ↓ 機"


def test_every_character_of_our_own_output_is_spelt_out_or_on_the_windows_code_page():
    source = Path(__file__).resolve().parents[3] / "src" / "tropism"
    files = [*(source / "cli").glob("*.py"), source / "reports" / "terminal.py", source / "results" / "caveats.py"]
    strange = set(re.findall(r"[^\x00-\x7f]", "".join(file.read_text(encoding="utf-8") for file in files)))
    lacking = {c for c in strange if c not in SPELT and c not in "².³"}
    assert {c for c in lacking if not c.encode("cp1252", errors="ignore")} <= {"機"}
