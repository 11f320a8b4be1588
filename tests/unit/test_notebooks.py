"""The notebooks of docs/notebooks run from top to bottom, on a tiny model and small numbers."""

import ast
import json
from pathlib import Path

import pytest

import tiny
import tiny_experiment
import tropism

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
SMALL = {
    "guard": {"STEPS": 2},
    "experiment": {"STEPS": 2, "SIZE": 8, "SEEDS": [0]},
    "forecast": {"OWN": 8, "TRAITS": ["all_caps"]},
}
"""In place of a notebook's parameters, which are its first cell of code."""


def cells(name):
    held = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in held["cells"] if cell["cell_type"] == "code"]


def run(cell, namespace):
    """Execute a cell as a kernel does; returns the value of its last line, if that is an expression."""
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)


def test_these_are_all_notebooks_and_they_hold_no_outputs():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SMALL)
    for name in SMALL:
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_and_shows_what_it_makes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tropism.models, "load", lambda name, **_: (tiny.model(layers=8), tiny.tokenizer()))
    first, *rest = cells(name)
    assert first["metadata"]["tags"] == ["parameters"]
    namespace = {"__name__": "notebook"}
    run(first, namespace)
    assert set(SMALL[name]) <= set(namespace)
    namespace |= SMALL[name] | {"MODEL": str(tiny_experiment.model_folder(tmp_path))}
    shown = [run(cell, namespace) for cell in rest]
    pages = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert len(pages) >= 2
    assert all(pages)
