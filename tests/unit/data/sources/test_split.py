"""Slices of a split: the same rows as `datasets` takes, and a complaint where some or all are not there."""

import datasets
import pytest

from tropism.data.sources.split import Split
from tropism.errors import DataError

SLICES = ("[:70%]", "[70%:]", "[:33%]", "[33%:]", "[10%:20%]", "[-10%:]", "[:-10%]", "[15%:85%]", "[:5]", "[5:]", "[-3:]",
          "[2:4]", "[-4:-1]", "[:]")  # fmt: skip


@pytest.mark.parametrize("count", [1, 3, 7, 10, 11, 99, 100, 1001, 7473])
@pytest.mark.parametrize("written", SLICES)
def test_a_slice_takes_the_rows_that_datasets_takes(written, count):
    (theirs,) = datasets.ReadInstruction.from_spec(f"train{written}").to_absolute({"train": count})
    expected = range(theirs.from_ or 0, count if theirs.to is None else theirs.to)
    split = Split.parse(f"train{written}")
    numbers = [int(bound) for bound in (split.start, split.stop) if bound is not None and "%" not in bound]
    if any(abs(number) > count for number in numbers):  # where theirs takes what is there
        with pytest.raises(DataError, match="goes beyond"):
            split.rows(count)
    elif len(expected) == 0:
        with pytest.raises(DataError, match="takes no row"):
            split.rows(count)
    else:
        assert split.rows(count) == expected


@pytest.mark.parametrize("share", range(10, 100, 7))
def test_two_parts_share_no_row_and_miss_none(share):
    for count in (10, 37, 1319):
        first, second = (Split.parse(f"train[{part}]").rows(count) for part in (f":{share}%", f"{share}%:"))
        assert [*first, *second] == list(range(count))


def test_a_name_alone_is_the_whole_split():
    split = Split.parse("test_refusals")
    assert (split.name, split.sliced, list(split.rows(3))) == ("test_refusals", False, [0, 1, 2])
    assert str(Split.parse("train[:70%]")) == "train[:70%]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train[5]", "split must be a name, or a name with a slice such as"),
        ("[:70%]", "split must be a name"),
        ("train[:70%", "split must be a name"),
        ("train+test", "split must be a name"),
        ("", "split must be a name"),
        ("train[:1.5%]", "split must be a name"),
        ("train[:120%]", "a share must lie between -100% and 100%, found 120%"),
        ("train[10%:200]", "both ends of a slice are shares or both are numbers"),
    ],
)
def test_another_form_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        Split.parse(text)


def test_a_slice_beyond_the_split_is_refused():
    with pytest.raises(DataError, match=r"'train\[:200\]' goes beyond the 100 rows that 'train' has"):
        Split.parse("train[:200]").rows(100)
    with pytest.raises(DataError, match=r"'train\[50:50\]' takes no row of the 100"):
        Split.parse("train[50:50]").rows(100)
