"""Texts are compared as they read: typography and composition are no difference."""

import pytest

from tropism.evals.scorers.base import Sample
from tropism.evals.scorers.registry import load_scorer


def value(name, response, target=None, **options):
    return load_scorer(name, options).score(Sample("s", [], response, target)).value


@pytest.mark.parametrize(
    ("response", "target"),
    [("Cafe\u0301", "Café"), ("It’s", "It's"), ("“Yes”", '"Yes"'), ("New\u00a0York", "New York"), ("5′", "5'")],
)
def test_typography_is_no_difference(response, target):
    assert value("exact", response, target) == 1
    assert value("contains", f"So {response}.", target) == 1


def test_case_of_every_script_is_folded():
    assert value("contains", "STRASSE", "straße") == 1
    assert value("exact", "ΣΊΣΥΦΟΣ", "σίσυφος", ignore_case=True) == 1


@pytest.mark.parametrize(
    ("response", "text", "inside", "whole"),
    [
        ("118", "18", 1, 0),
        ("so 18.", "18", 1, 1),
        ("education", "cat", 1, 0),
        ("a cat!", "cat", 1, 1),
        ("C++", "C++", 1, 1),
    ],
)
def test_whole_words_are_looked_for_where_asked(response, text, inside, whole):
    assert value("contains", response, text=text) == inside
    assert value("contains", response, text=text, whole_words=True) == whole
