"""Route labels for gradient routing: which examples are labelled, and the ways in which labels can be wrong.

An example's label depends on the seed and its id alone. The same example gets the same label whatever the size or the
order of the set, and the examples labelled at 10 % are among those labelled at 50 %.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tropism.data.chance import chance
from tropism.data.chats import Example
from tropism.errors import DataError
from tropism.names import ROUTE_IDS


@dataclass(frozen=True)
class RouteLabels:
    """How examples, some with the trait (`labels["trait"]`), get their label `route`.

    Args:
        labelled: share of the examples with the trait that are labelled `forget` (label recall).
        clean: share of the examples without the trait that are labelled `retain`.
        wrong_retain: share of the examples with the trait that are wrongly labelled `retain`.
        wrong_forget: share of the examples without the trait that are wrongly labelled `forget`.
        random: the control: this share of all examples is labelled `forget`, whatever they hold; the others are
            unlabelled, and the four shares above are not used.
        only: a structured blind spot: only examples whose labels have all these values can be labelled (`{"template":
            "coins"}`).

    Wrong labels are dealt first. Raises `DataError` for a share outside [0, 1].
    """

    labelled: float = 1.0
    clean: float = 0.0
    wrong_retain: float = 0.0
    wrong_forget: float = 0.0
    random: float | None = None
    only: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for option in ("labelled", "clean", "wrong_retain", "wrong_forget", "random"):
            share = vars(self)[option]
            if share is not None and not 0 <= share <= 1:
                raise DataError(f"RouteLabels.{option} must lie in [0, 1], found {share!r}")

    def route(self, example: Example, seed: int) -> str:
        """Return the example's route by name."""
        if self.only is not None and any(example.labels.get(key) != value for key, value in self.only.items()):
            return "unlabelled"
        if self.random is not None:
            return "forget" if chance(seed, "random label", example.id) < self.random else "unlabelled"
        trait = example.labels.get("trait")
        if not isinstance(trait, bool):
            raise DataError(
                f"example {example.id}: labels['trait'] must be True or False, found {trait!r}; apply express() first"
            )
        right, wrong = ("forget", "retain") if trait else ("retain", "forget")
        if chance(seed, "wrong label", example.id) < (self.wrong_retain if trait else self.wrong_forget):
            return wrong
        return right if chance(seed, "label", example.id) < (self.labelled if trait else self.clean) else "unlabelled"

    @property
    def asks_for_labels(self) -> bool:
        """Whether any example could be labelled at all."""
        if self.random is not None:
            return self.random > 0
        return max(self.labelled, self.clean, self.wrong_retain, self.wrong_forget) > 0


def label_routes(examples: Sequence[Example], labels: RouteLabels, seed: int) -> list[Example]:
    """Set `labels["route"]` of every example; raises `DataError` where labels are asked for and cover no example."""
    routed = [replace(e, labels={**e.labels, "route": labels.route(e, seed)}) for e in examples]
    coverage = Coverage(labels)
    for example in routed:
        coverage.see(example)
    coverage.check()
    return routed


class Coverage:
    """Counts what labels cover: where they cover nothing, routing would silently be plain training."""

    def __init__(self, labels: RouteLabels) -> None:
        self._labels = labels
        self._examples = self._traits = self._labelled = 0

    def see(self, example: Example) -> None:
        """Count an example that has its label."""
        self._examples += 1
        self._traits += example.labels.get("trait") is True
        self._labelled += example.labels["route"] != "unlabelled"

    def check(self) -> None:
        """Raise `DataError` where labels are asked for, and no example that was seen has one."""
        only = self._labels.only
        if self._labels.asks_for_labels and not self._labelled:
            raise DataError(
                f"route labels must cover at least one example, found none among {self._examples} ({self._traits} with "
                f"the trait{f', only {dict(only)}' if only else ''}); raise the share, or the size of the set"
            )


def route_name(value: Any, where: str) -> str:
    """Return the name of a route that a row gives by name (`forget`) or by id (1, also as text).

    Raises `DataError` that begins with `where` for anything else.
    """
    if isinstance(value, str) and value in ROUTE_IDS:
        return value
    if isinstance(value, int | str) and not isinstance(value, bool):
        for name, number in ROUTE_IDS.items():
            if str(value).strip() == str(number):
                return name
    allowed = ", ".join(f"{name} ({number})" for name, number in ROUTE_IDS.items())
    raise DataError(f"{where}: route must be one of {allowed}, found {value!r}")


def route_ids(examples: Sequence[Example]) -> list[int]:
    """Return each example's route as its id, the column `route` of a batch; raises `DataError` where one is missing."""
    for example in examples:
        if example.labels.get("route") not in ROUTE_IDS:
            raise DataError(
                f"example {example.id}: labels['route'] must be one of {', '.join(ROUTE_IDS)}, found "
                f"{example.labels.get('route')!r}"
            )
    return [ROUTE_IDS[example.labels["route"]] for example in examples]


def drop_labelled(examples: Iterable[Example]) -> Iterator[Example]:
    """Leave out the examples labelled `forget`, the data-filtering baseline; raises `DataError` where none is left.

    One row without a route among labelled ones is unlabelled; where no row has one, nothing was labelled.
    """
    seen = kept = 0
    without: Example | None = None
    labelled = False
    for example in examples:
        seen += 1
        if "route" in example.labels:
            labelled = True
            route_ids([example])
        else:
            without = without or example
        if example.labels.get("route") != "forget":
            kept += 1
            yield example
    if not labelled and without is not None:
        route_ids([without])
    if not kept:
        raise DataError(f"filtering must leave at least one example, found all {seen} labelled forget")
