"""The script that asks a resolver about other stacks says what does not resolve, and ends with 1."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "resolve_stacks.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("resolve_stacks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_stack_and_extra_is_asked_with_our_own_bounds(script, monkeypatch, capsys):
    asked = []

    def resolver(command, **_):
        wanted = Path(command[-1]).read_text(encoding="utf-8")
        asked.append((wanted, "--constraint" in command))
        lost = "axolotl" in wanted
        return SimpleNamespace(returncode=int(lost), stderr="no solution", stdout="torch==2.13.0\n    # via x==1\n")

    monkeypatch.setattr(script.subprocess, "run", resolver)
    monkeypatch.setattr("sys.argv", ["resolve_stacks.py"])
    assert script.main() == 1
    said = capsys.readouterr().out
    assert "trl-1.8: torch 2.13.0" in said
    assert "axolotl: does not resolve\nno solution" in said
    assert said.rstrip().endswith("not resolved: axolotl")
    stacks = [wanted for wanted, constrained in asked if not constrained]
    assert len(stacks) == len(script.STACKS)
    assert all("transformers>=" in wanted and "peft>=" in wanted for wanted in stacks)
    assert any("tropism[inspect]" in wanted for wanted, constrained in asked if constrained)
    monkeypatch.setattr("sys.argv", ["resolve_stacks.py", "trl-1.8"])
    assert script.main() == 0
