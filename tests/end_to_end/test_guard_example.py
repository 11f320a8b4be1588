"""The example runs, guarded and not, here on a tiny model in SmolLM2's place."""

import runpy
from pathlib import Path

import pytest

import tiny
import tropism as tp

EXAMPLE = Path(__file__).parents[2] / "examples" / "guard_trl.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's and PEFT's, about a model without a name
@pytest.mark.parametrize("guard", ["on", "off"])
def test_the_trl_example(guard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUARD", guard)
    monkeypatch.setattr(tp.models, "load", lambda name: (tiny.model(), tiny.tokenizer()))
    trainer = runpy.run_path(str(EXAMPLE))["trainer"]
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == 4
    for row in logged:
        shares = [value for name, value in row.items() if name.endswith("share_removed")]
        assert len(shares) == (2 if guard == "on" else 0)
        assert all(0 < share < 1 for share in shares)
