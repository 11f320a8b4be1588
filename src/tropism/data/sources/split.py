"""`split:` of a data set: a name, and which of its rows: `train`, `train[:70%]`, `train[100:200]`, `test[-10%:]`.

The arithmetic is that of the `datasets` library, so a slice means the same on a local file and on the hub.
"""

import re
from dataclasses import dataclass

from tropism.errors import DataError

_FORM = re.compile(r"(?P<name>[\w.\-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Split:
    """A split's name, and where the rows that are taken begin and end, as written (`70%`, `-100`), None for an end.

    >>> Split.parse("train[70%:]").rows(10)
    range(7, 10)
    """

    name: str
    start: str | None = None
    stop: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Split":
        """Read a split as a file writes it; raises `DataError` for another form, or a share above 100 %."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise DataError(
                f"split must be a name, or a name with a slice such as train[:70%], train[70%:] or train[100:200], "
                f"found {text!r}"
            )
        split = cls(match["name"], match["start"], match["stop"])
        bounds = [bound for bound in (split.start, split.stop) if bound is not None]
        shares = [bound for bound in bounds if bound.endswith("%")]
        if shares and len(shares) < len(bounds):
            raise DataError(f"split: both ends of a slice are shares or both are numbers, found {text!r}")
        for share in shares:
            if abs(int(share[:-1])) > 100:
                raise DataError(f"split: a share must lie between -100% and 100%, found {share} in {text!r}")
        return split

    @property
    def sliced(self) -> bool:
        """Whether rows are taken by number or share, and not the whole split."""
        return self.start is not None or self.stop is not None

    def rows(self, count: int) -> range:
        """Return the indices that are taken of a split of `count` rows.

        Raises `DataError` where there are none, or the slice begins or ends beyond the split.
        """
        for bound in (self.start, self.stop):
            if bound is not None and not bound.endswith("%") and abs(int(bound)) > count:
                raise DataError(
                    f"split {str(self)!r} goes beyond the {count} rows that {self.name!r} has; change the slice"
                )
        start, stop = _index(self.start, count, 0), _index(self.stop, count, count)
        if start >= stop:
            raise DataError(f"split {str(self)!r} takes no row of the {count} that {self.name!r} has; change the slice")
        return range(start, stop)

    def __str__(self) -> str:
        return f"{self.name}[{self.start or ''}:{self.stop or ''}]" if self.sliced else self.name


def _index(bound: str | None, count: int, otherwise: int) -> int:
    """Where a bound lies among `count` rows; a negative one counts from the end."""
    if bound is None:
        return otherwise
    index = round(count * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
    return min(max(index + count if index < 0 else index, 0), count)
