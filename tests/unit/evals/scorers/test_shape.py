"""Words, loops and rules of many scripts."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tropism.evals.scorers.base import Sample
from tropism.evals.scorers.registry import load_scorer
from tropism.evals.scorers.shape import _WORD, incoherence, words


def score(name, text):
    return load_scorer(name).score(Sample("s", [], text))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("don't stop", 3),
        ("“Don’t” stop", 3),
        ("naïve", 1),
        (unicodedata.normalize("NFD", "naïve café"), 2),
        ("हिन्दी भाषा", 2),
        ("می\u200cخواهم", 1),
        ("今天天气很好", 6),
        ("สวัสดี", 6 - 2),  # two of its characters are marks on another
        ("カタカナ and kanji", 6),
        ("", 0),
    ],
)
def test_words_are_counted_in_any_script(text, count):
    assert score("length", text).value == count


@given(st.text(alphabet=st.characters(codec="latin-1")))
def test_of_latin_text_words_are_as_they_always_were(text):
    assert words(text) == _WORD.findall(text)


def test_repetition_is_seen_without_spaces():
    assert score("repetition", "今天天气很好" * 3).value == pytest.approx(0.6)
    assert incoherence("今天天气" * 20) == "words in a loop"


@pytest.mark.parametrize(
    "text",
    [
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "Title\n" + "-" * 60 + "\nThe answer is 4.",
        "Title\n" + "═" * 80 + "\ntext",
        "(-∞, ∞)",
        "x ≥ 0",
        "नमस्ते",
    ],
)
def test_tables_rules_and_formulas_are_coherent(text):
    assert incoherence(text) is None


@pytest.mark.parametrize("text", ["-" * 50, "!?!?…", "a" * 50, "ok\n" + "x" * 2000, "no no " * 30])
def test_noise_is_not(text):
    assert incoherence(text) is not None
