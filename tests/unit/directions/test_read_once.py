"""Several finders on one contrast share the passes and the answers, and find what they would find alone."""

import pytest

import tiny
import tropism as tp
from tropism.data.generation import GenerateOptions
from tropism.directions import pipeline
from tropism.directions.pipeline import Evidence, find_and_validate
from tropism.directions.read_once import also_read_at, read_once
from tropism.evals.behaviour import own_answers

SITES = [tp.Site(1), tp.Site(2)]
FINDERS = [tp.MeanDifference(), tp.PCA(k=2), tp.MeanDifference()]


@pytest.fixture
def model():
    """A model that counts its passes."""
    made = tiny.model().eval()
    made.passes = 0
    made.model.embed_tokens.register_forward_hook(lambda *_: setattr(made, "passes", made.passes + 1))
    return made


def contrasts():
    prompts = [f"Say {i}." for i in range(24)]
    yield tp.Contrast.of_responses(prompts, positive=[f"LOUD {i}" for i in range(24)], negative=["quiet"] * 24)
    yield tp.Contrast.of_system_prompts(prompts, promote="Be loud.", suppress="Be quiet.")


@pytest.mark.parametrize("contrast", contrasts(), ids=["responses", "system_prompts"])
def test_finders_share_passes_and_find_the_same(model, tokenizer, contrast, monkeypatch):
    monkeypatch.setattr(pipeline, "ANSWER_TOKENS", 4)

    def found(finder):
        return find_and_validate(model, tokenizer, contrast, name="x", sites=SITES, finder=finder, evidence=Evidence())

    alone = [found(finder) for finder in FINDERS]
    needed, model.passes = model.passes / len(FINDERS), 0
    with read_once():
        together = [found(finder) for finder in FINDERS]
    assert model.passes < 1.5 * needed
    for one, other in zip(alone, together, strict=True):
        assert one.report.to_json() == other.report.to_json()
        assert all((one.directions.vectors[site] == other.directions.vectors[site]).all() for site in SITES)
    model.passes = 0
    found(FINDERS[0])
    assert model.passes == pytest.approx(needed, rel=0.5)  # nothing is kept outside


def test_other_sites_of_the_same_chats_are_read_in_the_same_passes(model, tokenizer):
    contrast = next(contrasts())

    def found(site):
        return tp.find_directions(model, tokenizer, contrast, sites=[site])

    alone = [found(site) for site in SITES]
    needed, model.passes = model.passes / len(SITES), 0
    with read_once(), also_read_at(SITES):
        together = [found(site) for site in SITES]
    assert model.passes == needed
    for site, one, other in zip(SITES, alone, together, strict=True):
        assert one.sites == other.sites == (site,)
        assert (one.vectors[site] == other.vectors[site]).all()
    model.passes = 0
    with also_read_at(SITES):
        assert [found(site).sites for site in SITES] == [(site,) for site in SITES]
    assert model.passes == 2 * needed  # nothing is kept outside


def test_own_answers_are_given_once_to_the_same_options(model, tokenizer):
    contrast = next(contrasts())
    with read_once():
        first = own_answers(model, tokenizer, contrast, options=GenerateOptions(max_new_tokens=3))
        taken, model.passes = model.passes, 0
        assert own_answers(model, tokenizer, contrast, options=GenerateOptions(max_new_tokens=3)) == first
        assert model.passes == 0
        own_answers(model, tokenizer, contrast, options=GenerateOptions(max_new_tokens=4))
        assert model.passes > taken
        with pytest.raises(tp.errors.DirectionsError):
            tp.find_directions(model, tokenizer, contrast, sites=[])
    own_answers(model, tokenizer, contrast, options=GenerateOptions(max_new_tokens=3))
    assert model.passes > 2 * taken


def test_another_model_and_a_model_with_adapters_are_asked(model, tokenizer):
    contrast = next(contrasts())
    other = tiny.model(seed=1).eval()
    with read_once():
        one = tp.find_directions(model, tokenizer, contrast, sites=SITES)
        two = tp.find_directions(other, tokenizer, contrast, sites=SITES)
    assert (one.vectors[SITES[0]] != two.vectors[SITES[0]]).any()
