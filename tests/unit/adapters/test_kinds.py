"""The table of adapter kinds in the docs is the table that the code refuses by."""

from pathlib import Path

from tropism.adapters.kinds import DOES, KINDS, OPERATIONS, table


def test_the_docs_have_the_table():
    page = Path(__file__).parents[3] / "docs" / "works-with.md"
    assert table() in page.read_text(encoding="utf-8")


def test_every_kind_says_why_it_is_refused():
    assert set(DOES) == set(OPERATIONS)
    for kind in KINDS.values():
        assert kind.exact <= set(OPERATIONS)
        assert kind.why or kind.exact == set(OPERATIONS), kind.name
