"""The examples in the docstrings and the docs of scorers, judges and suites run as they stand."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import yaml

from tropism.evals.scorers.base import SCORERS, Sample
from tropism.evals.scorers.registry import load_scorer, register_file

DOCS = Path(__file__).parents[4] / "docs"
MODULES = [
    "judges.agreement",
    "judges.presets",
    "judges.prompt",
    "judges.replies",
    "judges.styles",
    "scorers.case",
    "scorers.code_security",
    "scorers.number",
    "scorers.number_text",
    "scorers.refusal",
    "scorers.normalise",
    "scorers.registry",
    "scorers.shape",
    "scorers.thinking",
    "suites.judged",
]


@pytest.mark.parametrize("module", MODULES)
def test_docstrings(module):
    result = doctest.testmod(importlib.import_module(f"tropism.evals.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_of_the_evaluation_page():
    first, thinking = blocks("concepts/evaluation.md", "python")[:2]
    names = {}
    exec(first, names)
    exec(thinking, names)
    for line in (line for line in (first + thinking).splitlines() if "  # " in line):
        expression, _, value = line.partition("  # ")
        assert repr(eval(expression, names)) == value


def test_the_how_tos_own_scorer_and_its_judge(tmp_path):
    before = dict(SCORERS)
    source, measure = (
        blocks("how-to/scorers_and_judges.md", "python")[0],
        blocks("how-to/scorers_and_judges.md", "yaml")[0],
    )
    (tmp_path / "my_scorers.py").write_text(source, encoding="utf-8")
    try:
        assert register_file(tmp_path / "my_scorers.py") == ["question_marks"]
        assert load_scorer("question_marks", {"most": 0.5}).score(Sample("1", [], "Why? So?")).value == 0.5
    finally:
        SCORERS.clear()
        SCORERS.update(before)
    options = yaml.load(measure, Loader=yaml.BaseLoader)["measure"]["kindness"]
    del options["on"]
    assert load_scorer(options.pop("scorer"), options).style == "single_token"


def test_the_table_of_scorers_is_complete():
    page = (DOCS / "concepts" / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in SCORERS if f"`{name}`" not in page] == []
