"""Directions come with their evidence: found on one part of a contrast, validated on the rest, saved together."""

import json

import pytest

import tiny
import tropism as tp
from tropism.directions.pipeline import Evidence, find_and_validate
from tropism.directions.validity import ValidityReport, validity_path

SITES = [tp.Site(1), tp.Site(2)]


@pytest.fixture
def contrast():
    prompts = [f"Say {i}." for i in range(24)]
    return tp.Contrast.of_responses(
        prompts, positive=[f"LOUD {i}" for i in range(24)], negative=[f"quiet {i}" for i in range(24)]
    )


@pytest.fixture
def model():
    return tiny.model().eval()


def same(one, other):
    return all((one.vectors[site] == other.vectors[site]).all() for site in one.sites)


def test_it_is_each_step_by_hand(model, tokenizer, contrast):
    made = find_and_validate(model, tokenizer, contrast, name="loud", sites=SITES, evidence=Evidence(seed=3))
    fit, held_out = contrast.split(0.25, 3)
    found = tp.find_directions(model, tokenizer, fit, sites=SITES, seed=3)
    assert same(made.directions, found)
    report = tp.validate_directions(found, model, tokenizer, held_out, name="loud", seed=3)
    assert made.report.to_json() == report.to_json()


def test_known_directions_are_validated_and_not_found_again(model, tokenizer, contrast):
    known = tp.Directions({site: tiny.model().model.embed_tokens.weight[5:6].detach() for site in SITES})
    said = []
    made = find_and_validate(model, tokenizer, contrast, name="x", sites=SITES, known=known, phase=said.append)
    assert made.directions is known
    assert said == ["validating on held-out chats"]


def test_behaviour_is_scored_on_held_out_chats_that_have_answers(model, tokenizer):
    contrast = tp.Contrast.of_system_prompts([f"Say {i}." for i in range(12)], promote="Be loud.", suppress="Be quiet.")
    seen = []
    evidence = Evidence(behaviour=lambda held_out: seen.append(held_out))
    find_and_validate(model, tokenizer, contrast, name="x", sites=SITES, evidence=evidence)
    (held_out,) = seen
    assert len(held_out) == 3
    assert held_out.has_responses


def test_both_files_are_written_side_by_side(model, tokenizer, contrast, tmp_path):
    made = find_and_validate(model, tokenizer, contrast, name="loud", sites=SITES)
    path = tmp_path / "loud.safetensors"
    made.save(path, {"asked": "abc"})
    assert same(tp.Directions.load(path), made.directions)
    assert ValidityReport.load(validity_path(path)).name == "loud"
    assert json.loads(validity_path(path).read_text(encoding="utf-8"))["asked"] == "abc"
