"""The one definition of interval → verdict, against the definition in words, on every position of interval and bound."""

import itertools

import pytest

from tropism.results.rules import Requirement, decide, first_without_interval, numbers, shown, why_open
from tropism.stats import Estimate

ENDS = (-0.3, -0.1, 0.0, 0.05, 0.1, 0.2, 0.4)
OPEN = Estimate(0.5, None, None, "", "an interval over seeds needs at least 3 seeds, found 2", None, 2, 1)


def between(low, high):
    return Estimate((low + high) / 2, low, high, "seeds", "", 0.01, 5, 1)


@pytest.mark.parametrize(("low", "high"), itertools.combinations(ENDS, 2))
@pytest.mark.parametrize(("bound", "against"), [(0.0, None), (0.0, 0.1), (-0.1, None), (0.1, 0.2)])
def test_a_requirement_is_met_refuted_or_open(low, high, bound, against):
    wrong_side = bound if against is None else against
    above = Requirement("x", between(low, high), above=bound, against=against)
    expected = "supported" if low > bound else "not supported" if high < wrong_side else "undecided"
    assert above.verdict == decide([above]) == expected
    mirrored = Requirement(
        "x", between(-high, -low), below=-bound, against=None if against is None else -against
    )  # fmt: skip
    assert mirrored.verdict == expected


def test_an_interval_that_touches_the_bound_does_not_lie_beyond_it():
    assert not Requirement("x", between(0.0, 0.2), above=0.0).met
    assert not Requirement("x", between(-0.2, 0.0), below=0.0).met


@pytest.mark.parametrize("unknown", [None, OPEN])
def test_what_has_no_interval_decides_nothing(unknown):
    for requirement in (Requirement("x", unknown, above=-9.0), Requirement("x", unknown, below=9.0)):
        assert (requirement.met, requirement.refuted, requirement.verdict) == (False, False, "undecided")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("++", "supported"),
        ("+?", "undecided"),
        ("+0", "undecided"),
        ("+-", "not supported"),
        ("?-", "not supported"),
        ("0-", "not supported"),
        ("-?", "not supported"),
    ],
)
def test_a_claim_needs_every_part_and_one_refutation_decides(parts, expected):
    found = {"+": between(0.2, 0.4), "-": between(-0.3, -0.1), "0": between(-0.1, 0.2), "?": OPEN}
    assert decide([Requirement(sign, found[sign], above=0.0) for sign in parts]) == expected


def test_a_small_sure_gain_is_met_before_it_is_called_none():
    """Above 0 and below the margin at once: what the requirement asks for comes first."""
    assert Requirement("x", between(0.01, 0.05), above=0.0, against=0.1).verdict == "supported"


def test_why_nothing_is_decided():
    assert why_open(None) == "a condition has no finished run that could be compared"
    assert why_open(OPEN) == OPEN.reason
    assert why_open(between(-0.1, 0.1)) == "the interval decides neither way"
    parts = [Requirement("a", between(-0.1, 0.1), above=0.0), Requirement("b", OPEN, above=0.0)]
    assert first_without_interval(parts).name == "b"
    assert first_without_interval(parts[:1]) is None


def test_an_estimate_in_a_sentence_and_among_the_numbers():
    assert shown(between(0.4, 0.82)) == "+0.61 [+0.40, +0.82]"
    assert shown(None) == "an unknown amount"
    assert numbers(None) == {"value": None, "low": None, "high": None}
    assert numbers(OPEN) == {"value": 0.5, "low": None, "high": None}
