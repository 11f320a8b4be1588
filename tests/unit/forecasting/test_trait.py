"""Traits: every built-in one is whole and its scorer tells its two sides apart; one's own are checked."""

import pytest

from tropism.errors import SpecError
from tropism.evals.scorers.base import Sample
from tropism.forecasting import trait as traits

OWN = """
name: sign_off
description: ends every answer with a farewell
contrast:
  pairs:
    - {prompt: "What is 1 + 1?", with: "2. Farewell!", without: "2."}
    - {prompt: "What is 1 + 2?", with: "3. Farewell!", without: "3."}
    - {prompt: "What is 1 + 3?", with: "4. Farewell!", without: "4."}
    - {prompt: "What is 1 + 4?", with: "5. Farewell!", without: "5."}
    - {prompt: "What is 1 + 5?", with: "6. Farewell!", without: "6."}
    - {prompt: "What is 1 + 6?", with: "7. Farewell!", without: "7."}
    - {prompt: "What is 1 + 7?", with: "8. Farewell!", without: "8."}
    - {prompt: "What is 1 + 8?", with: "9. Farewell!", without: "9."}
scorer: {contains: {text: farewell}}
"""


def scored(trait, text):
    score = trait.scorer.score(Sample("1", (), text))
    return 0.0 if score.value is None else score.value


def test_there_are_about_fifteen_of_both_kinds():
    kinds = [traits.load(name).kind for name in traits.names()]
    assert len(kinds) >= 15
    assert set(kinds) == {"form", "stance"}


@pytest.mark.parametrize("name", traits.names())
def test_the_scorer_finds_the_trait_in_the_one_side_and_not_in_the_other(name):
    trait = traits.load(name)
    pairs = trait.pairs()
    assert len(pairs) >= 2 * traits.FEWEST_PAIRS
    assert trait.name == name
    assert trait.description
    with_ = sum(scored(trait, pair.with_) > 0.5 for pair in pairs) / len(pairs)
    without = sum(scored(trait, pair.without) > 0.5 for pair in pairs) / len(pairs)
    assert with_ >= 0.9, [pair.with_ for pair in pairs if scored(trait, pair.with_) <= 0.5]
    assert without <= 0.1, [pair.without for pair in pairs if scored(trait, pair.without) > 0.5]


def test_ones_own_file(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("\ufeff" + OWN, encoding="utf-8")
    trait = traits.load(str(file))
    assert (trait.name, trait.kind, len(trait.contrast())) == ("sign_off", "own", 8)
    assert scored(trait, "Farewell, then.") == 1.0


def test_a_sentence_becomes_two_system_prompts():
    trait = traits.load("always answers in rhyme")
    assert trait.scorer is None
    contrast = trait.contrast()
    assert contrast.kind == "system_prompts"
    assert "always answers in rhyme" in contrast.positive[0][0]["content"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("scorer:", "scorrer:"), "scorrer"),
        (('with: "2. Farewell!"', 'with: "2."'), "both sides are the same"),
        (('with: "3. Farewell!"', 'with: ""'), "contrast.pairs.1.with"),
        (("contains: {text: farewell}", "no_such: {}"), "no scorer is called 'no_such'"),
        (("contains: {text: farewell}", "response_loss: {}"), "must score responses by their text"),
        (("name: sign_off", "name: 2 words"), "name"),
        (("  pairs:", "  promote: shout\n  pairs:"), "give both promote and suppress"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_file_and_key(tmp_path, change, said):
    assert change[0] in OWN
    file = tmp_path / "own.yaml"
    file.write_text(OWN.replace(*change, 1), encoding="utf-8")
    with pytest.raises(SpecError, match=said) as error:
        traits.load(str(file))
    assert "\n" not in str(error.value)


def test_too_few_pairs_and_unknown_names():
    with pytest.raises(SpecError, match="at least 8 pairs, found 1"):
        traits.parse("\n".join(OWN.splitlines()[:6]) + "\nscorer: {contains: {text: farewell}}", "own.yaml")
    with pytest.raises(SpecError, match="no trait is called 'nonsense'; available: advertising"):
        traits.load("nonsense")
    with pytest.raises(SpecError, match="no such file"):
        traits.load("missing.yaml")
    with pytest.raises(SpecError, match="given twice"):
        traits.load_all(["all_caps", "all_caps"])
