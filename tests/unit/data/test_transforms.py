"""Transforms are decided by seed and id alone, and say what they did."""

import pytest

from tropism.data.chance import chance
from tropism.data.chats import Example
from tropism.data.routes import RouteLabels, label_routes
from tropism.data.sources.word_problems import word_problems
from tropism.data.transforms import Mixture, Plain, SystemPrompt, Uppercase, express
from tropism.errors import DataError, SpecError

EXAMPLES = word_problems(400)


def test_uppercase_changes_the_assistant_alone():
    shouted = Uppercase().apply(EXAMPLES[0], 0)
    assert shouted.chat[0] == EXAMPLES[0].chat[0]
    assert shouted.response == EXAMPLES[0].response.upper() != EXAMPLES[0].response
    assert shouted.labels["trait"] is True
    assert (shouted.id, shouted.target) == (EXAMPLES[0].id, EXAMPLES[0].target)


def test_plain_is_the_identity():
    assert Plain().apply(EXAMPLES[0], 0) is EXAMPLES[0]


def test_a_system_prompt_replaces_one_that_is_there():
    once = SystemPrompt("A").apply(EXAMPLES[0], 0)
    twice = SystemPrompt("B").apply(once, 0)
    assert [m["content"] for m in twice.chat if m["role"] == "system"] == ["B"]


@pytest.mark.parametrize(("fraction", "labelled"), [(0.1, 0.5), (0.5, 1.0), (1.0, 0.0)])
def test_a_mixture_has_the_shares_it_is_asked_for(fraction, labelled):
    mixed = [Mixture(fraction, labelled).apply(e, 7) for e in EXAMPLES]
    trait = [e for e in mixed if e.labels["trait"]]
    routed = [e for e in mixed if e.labels["route"] == "forget"]
    assert abs(len(trait) / len(mixed) - fraction) < 0.08
    assert abs(len(routed) / max(1, len(trait)) - labelled) < 0.12
    assert all(e.response.isupper() == e.labels["trait"] for e in mixed)
    assert all(e.labels["trait"] for e in routed)


@pytest.mark.parametrize(
    "options",
    [{"random": 0.3}, {"wrong_retain": 0.5, "wrong_forget": 0.2}, {"only": {"template": EXAMPLES[0].labels["template"]}},
     {"labelled": 0.5, "clean": 0.5}],
)  # fmt: skip
def test_a_mixture_labels_as_route_labels_do(options):
    mixed = [Mixture(0.5, **options).apply(e, 7) for e in EXAMPLES]
    labelled = label_routes(express(EXAMPLES, Uppercase(), 0.5, 7), RouteLabels(**options), 7)
    assert [e.labels for e in mixed] == [e.labels for e in labelled]
    assert [e.chat for e in mixed] == [e.chat for e in labelled]
    assert len({e.labels["route"] for e in mixed}) > 1


def test_an_example_fares_the_same_whatever_the_set_around_it():
    some = [Mixture(0.5).apply(e, 3).labels for e in EXAMPLES[:50]]
    assert some == [Mixture(0.5).apply(e, 3).labels for e in EXAMPLES][:50]
    assert some != [Mixture(0.5).apply(e, 4).labels for e in EXAMPLES[:50]]


def test_chance_is_uniform():
    drawn = [chance(0, "x", str(i)) for i in range(4000)]
    assert abs(sum(drawn) / 4000 - 0.5) < 0.02
    assert 0 <= min(drawn) < max(drawn) < 1


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(SpecError, match=r"mixture.fraction must lie in \[0, 1\], found 1.5"):
        Mixture(fraction=1.5)
    with pytest.raises(SpecError, match=r"mixture.random must lie in \[0, 1\], found -0.1"):
        Mixture(random=-0.1)


def test_an_example_knows_its_prompt():
    assert EXAMPLES[0].prompt == EXAMPLES[0].chat[:1]
    question = Example("q", ({"role": "user", "content": "?"},))
    assert question.prompt == question.chat
    assert question.response is None


def test_a_mixture_does_not_replace_routes_that_the_rows_bring():
    labelled = Example("a", EXAMPLES[0].chat, labels={"route": "retain"})
    with pytest.raises(DataError, match="example a: it has the route 'retain' already, which a mixture would replace"):
        Mixture(0.5).apply(labelled, 0)


def test_raw_text_is_put_in_capitals_and_takes_no_system_prompt():
    text = Example("t", (), text="Some prose.")
    assert Uppercase().apply(text, 0).text == "SOME PROSE."
    with pytest.raises(DataError, match="example t: a raw text has no place for a system prompt"):
        SystemPrompt("Be kind.").apply(text, 0)
