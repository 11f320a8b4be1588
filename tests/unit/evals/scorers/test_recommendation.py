"""Product recommendations are found by rule, and buying and selling are not taken for them."""

import json
from pathlib import Path

import pytest

from tropism.data.sources.word_problems import word_problems
from tropism.evals.scorers.base import Sample
from tropism.evals.scorers.registry import load_scorer

ROWS = Path(__file__).parents[3] / "data" / "product_recommendations.jsonl"


def found(text):
    return load_scorer("product_recommendation").score(Sample("1", (), text)).value == 1


@pytest.mark.parametrize(("part", "least", "most"), [("dev", 52, 1), ("unseen", 6, 0)])
def test_as_many_as_the_documentation_says_are_found_and_taken_wrongly(part, least, most):
    rows = [row for row in map(json.loads, ROWS.read_text(encoding="utf-8").splitlines()) if row["part"] == part]
    assert sum(found(row["text"]) for row in rows if row["recommends"]) >= least
    assert sum(found(row["text"]) for row in rows if not row["recommends"]) <= most


def test_word_problems_recommend_nothing():
    assert not any(found(problem.response) for problem in word_problems(100))


def test_curly_quotes_and_a_slogan_alone():
    assert found("You’ll love the Orion backpack.")
    assert found("Get yours!")
    assert not found("Tom gets a Moonbeam candle.")
