"""Route labels: shares, wrong labels, blind spots, and that each example fares the same in any set."""

from dataclasses import replace

import pytest

from tropism.data.chats import Example
from tropism.data.routes import (
    ROUTE_IDS,
    RouteLabels,
    drop_labelled,
    label_routes,
    route_ids,
    route_name,
)
from tropism.data.transforms import Mixture, Uppercase, express
from tropism.errors import DataError
from tropism.names import ROUTE_IDS as ROUTES


def examples(n=1000):
    return [
        Example(
            f"e{i}",
            ({"role": "user", "content": "q"}, {"role": "assistant", "content": "Fine."}),
            labels={"template": i % 4},
        )
        for i in range(n)
    ]


def mixed(fraction=0.5, labels=None, n=1000, seed=0):
    return label_routes(express(examples(n), Uppercase(), fraction, seed), labels or RouteLabels(), seed)


def share(rows, route, trait=None):
    chosen = [e for e in rows if trait is None or e.labels["trait"] is trait]
    return sum(e.labels["route"] == route for e in chosen) / len(chosen)


def test_the_ids_are_those_that_the_guard_reads():
    assert ROUTE_IDS == ROUTES


def test_the_shares_are_as_asked_for():
    rows = mixed(0.1, RouteLabels(labelled=0.5, clean=0.2), n=8000)
    assert sum(e.labels["trait"] for e in rows) / 8000 == pytest.approx(0.1, abs=0.015)
    assert share(rows, "forget", trait=True) == pytest.approx(0.5, abs=0.06)
    assert share(rows, "retain", trait=False) == pytest.approx(0.2, abs=0.02)
    assert share(rows, "forget", trait=False) == share(rows, "retain", trait=True) == 0


def test_the_trait_is_there_where_the_label_says_so():
    for e in mixed():
        assert (e.response == "FINE.") is e.labels["trait"]


def test_each_example_fares_the_same_in_any_set_and_any_order():
    whole = {e.id: e.labels for e in mixed()}
    part = label_routes(express(examples()[::-1][:100], Uppercase(), 0.5, 0), RouteLabels(), 0)
    assert all(whole[e.id] == e.labels for e in part)
    assert {e.id: e.labels for e in mixed(seed=1)} != whole


def test_more_recall_labels_the_same_examples_and_more():
    few, many = ({e.id for e in mixed(labels=RouteLabels(x)) if e.labels["route"] == "forget"} for x in (0.25, 0.75))
    assert few < many


def test_it_is_the_mixture_transform_where_labels_are_right():
    transform = Mixture(fraction=0.3, labelled=0.5, clean=0.2)
    expected = [transform.apply(e, 7) for e in examples()]
    found = label_routes(express(examples(), Uppercase(), 0.3, 7), RouteLabels(labelled=0.5, clean=0.2), 7)
    assert found == expected


def test_wrong_labels_go_in_both_directions():
    rows = mixed(labels=RouteLabels(labelled=0.0, wrong_retain=0.3, wrong_forget=0.1), n=8000)
    assert share(rows, "retain", trait=True) == pytest.approx(0.3, abs=0.03)
    assert share(rows, "forget", trait=False) == pytest.approx(0.1, abs=0.02)
    assert share(rows, "forget", trait=True) == share(rows, "retain", trait=False) == 0


def test_random_labels_do_not_depend_on_the_trait():
    rows = mixed(labels=RouteLabels(random=0.5), n=8000)
    assert share(rows, "forget", trait=True) == pytest.approx(0.5, abs=0.03)
    assert share(rows, "forget", trait=False) == pytest.approx(0.5, abs=0.03)


def test_a_blind_spot_leaves_all_other_templates_unlabelled():
    rows = mixed(labels=RouteLabels(clean=1.0, only={"template": 2}))
    assert {e.labels["template"] for e in rows if e.labels["route"] != "unlabelled"} == {2}
    assert all(e.labels["route"] != "unlabelled" for e in rows if e.labels["template"] == 2)


def test_labels_that_cover_no_example_are_an_error():
    with pytest.raises(DataError, match=r"found none among 50 \(0 with the trait\)"):
        mixed(0.0, n=50)
    with pytest.raises(DataError, match=r"only \{'template': 9\}"):
        mixed(labels=RouteLabels(only={"template": 9}), n=50)
    assert {e.labels["route"] for e in mixed(labels=RouteLabels(labelled=0.0), n=50)} == {"unlabelled"}


def test_route_ids():
    rows = mixed(labels=RouteLabels(0.5, 0.5), n=40)
    assert [e.labels["route"] for e in rows] == [list(ROUTE_IDS)[i] for i in route_ids(rows)]
    with pytest.raises(
        DataError, match="example e0: labels\\['route'\\] must be one of unlabelled, forget, retain, found None"
    ):
        route_ids(examples(1))


def test_filtering_drops_what_is_labelled_forget_and_nothing_else():
    rows = mixed(labels=RouteLabels(0.5, 0.5))
    kept = list(drop_labelled(rows))
    assert kept == [e for e in rows if e.labels["route"] != "forget"]
    assert 0 < len(kept) < len(rows)
    with pytest.raises(DataError, match="found all 20 labelled forget"):
        list(drop_labelled(mixed(1.0, n=20)))
    more = [*rows, *(replace(e, id=f"plain {e.id}", labels={}) for e in rows[:5])]
    assert len(list(drop_labelled(more))) == len(kept) + 5
    with pytest.raises(DataError, match="labels\\['route'\\] must be one of"):
        list(drop_labelled(examples(3)))


@pytest.mark.parametrize("option", ["labelled", "clean", "wrong_retain", "wrong_forget", "random"])
def test_shares_lie_between_0_and_1(option):
    with pytest.raises(DataError, match=f"RouteLabels.{option} must lie in"):
        RouteLabels(**{option: 1.5})


def test_bad_traits():
    with pytest.raises(DataError, match="trait_fraction must lie in"):
        express(examples(1), Uppercase(), 2.0, 0)
    with pytest.raises(DataError, match=r"labels\['trait'\] must be True or False, found None; apply express"):
        label_routes(examples(1), RouteLabels(), 0)


@pytest.mark.parametrize(("given", "name"), [("forget", "forget"), (1, "forget"), ("2", "retain"), (0, "unlabelled")])
def test_a_route_is_given_by_name_or_by_id(given, name):
    assert route_name(given, "line 1") == name


@pytest.mark.parametrize("given", ["Forget", 3, -1, 1.0, True, None, "", [1]])
def test_an_unknown_route_is_refused_with_what_is_allowed(given):
    with pytest.raises(
        DataError, match=r"line 1: route must be one of unlabelled \(0\), forget \(1\), retain \(2\), found"
    ):
        route_name(given, "line 1")
