"""Upper case is a share of the letters that could be in either case."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tropism.evals.scorers.case import uppercase_share


@given(st.text())
def test_text_that_upper_made_is_all_upper_case(text):
    assert uppercase_share(text.upper()) in (None, 1.0)


@given(st.text())
def test_text_that_lower_made_is_not_upper_case(text):
    assert uppercase_share(text.lower()) in (None, 0.0)


def test_both_hold_for_every_character():
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    assert [one for one in characters if uppercase_share(one.upper()) not in (None, 1.0)] == []
    assert [one for one in characters if uppercase_share(one.lower()) not in (None, 0.0)] == []


@pytest.mark.parametrize("text", ["1ª PARTE", "XᵉX", "Hʰ", "H₂O AND xₐ".upper()])
def test_letters_without_another_case_do_not_count(text):
    assert uppercase_share(text) == 1
