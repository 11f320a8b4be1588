"""The artifact: what is saved is what is loaded, files that are not ours are refused, and models are compared."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BltConfig

import adapter_kinds
import architectures
import tiny
import tropism as tp
from tropism.directions.provenance import hash_of_config
from tropism.errors import DirectionsError, DirectionsMismatch

CONTRAST = tp.Contrast.of_responses(["a", "b"], positive=["LOUD", "NOISE"], negative=["quiet", "calm"])


@pytest.fixture
def found(model, tokenizer):
    return tp.find_directions(model, tokenizer, CONTRAST, sites=[tp.Site(1), tp.Site(2)])


def test_a_file_holds_all_of_it(found, tmp_path):
    loaded = tp.Directions.load(found.save(tmp_path / "deep" / "d.safetensors"))
    assert loaded.provenance == json.loads(json.dumps(found.provenance))
    assert loaded.sites == found.sites
    for site in found.sites:
        assert loaded.vectors[site].dtype == torch.float32
        assert torch.equal(loaded.vectors[site], found.vectors[site])
        assert torch.equal(loaded.covariance[site], found.covariance[site])
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["d.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"vectors/1": torch.ones(1, 4)}, None, r"holds no directions \(format None"),
        ({"vectors/1": torch.ones(1, 4)}, {"format": "other/1"}, "format 'other/1'"),
        ({"w": torch.ones(1, 4)}, {"format": "tropism.directions/1"}, "unknown tensor 'w'"),
        (
            {"vectors/1": torch.ones(1, 4)},
            {"format": "tropism.directions/1", "provenance": "{"},
            "provenance is not JSON",
        ),
        (
            {"vectors/1": torch.ones(1, 4)},
            {"format": "tropism.directions/1", "provenance": "[]"},
            "must be a JSON object, found list",
        ),
        (
            {"vectors/1": torch.ones(1, 4), "covariance/1": torch.ones(2, 5)},
            {"format": "tropism.directions/1"},
            r"covariance at resid_post.1 must be a finite factor \[m, 4\]",
        ),
        (
            {"vectors/1": torch.ones(1, 4), "covariance/2": torch.ones(2, 4)},
            {"format": "tropism.directions/1"},
            "at a site that has vectors",
        ),
    ],
)
def test_malformed_files_are_refused(tmp_path, tensors, header, message):
    file = tmp_path / "bad.safetensors"
    save_file(tensors, file, metadata=header)
    with pytest.raises(DirectionsError, match=message):
        tp.Directions.load(file)


def test_a_pickle_is_no_directions_file(tmp_path):
    file = tmp_path / "d.safetensors"
    torch.save({1: torch.ones(4)}, file)
    with pytest.raises(DirectionsError, match="is not a safetensors file.*tropism directions import"):
        tp.Directions.load(file)


def test_the_same_architecture_is_taken(found, model):
    assert found.check_model(model) is found
    assert found.check_model(tiny.model(seed=5)) is found


def test_what_training_changes_in_a_config_does_not_matter(found, model):
    model.config.eos_token_id, model.config.use_cache = 7, False
    assert found.check_model(model) is found


def test_another_architecture_is_refused_and_can_be_forced(found):
    other = tiny.model(layers=5)
    with pytest.raises(
        DirectionsMismatch, match="whose config hash .* is not that of .*; find them on this model, or force it"
    ):
        found.check_model(other)
    forced = found.check_model(other, force=True)
    assert forced.provenance["forced_onto"]["config_hash"] != found.provenance["model"]["config_hash"]
    assert torch.equal(forced.vectors[tp.Site(1)], found.vectors[tp.Site(1)])


def test_a_resized_vocabulary_is_refused_and_when_forced_accepted_by_guards(found, model):
    model.resize_token_embeddings(300)
    with pytest.raises(DirectionsMismatch, match="find them on this model, or force it"):
        tp.Ablation(found).attach(model).__enter__()
    forced = found.check_model(model, force=True)
    for d in (forced, forced.check_model(model), tp.Directions(forced.vectors, forced.provenance)):
        with tp.Ablation(d).attach(model):
            model(**tiny.batch())
    with pytest.raises(DirectionsMismatch):
        forced.check_model(tiny.model(layers=6))  # forced onto one model, not onto any


@pytest.mark.parametrize("control", [lambda d: d.random_like(0), lambda d: d.orthogonal_complement(0)])
def test_a_control_is_of_the_model_of_what_it_controls(found, control):
    with pytest.raises(DirectionsMismatch, match="whose config hash"):
        control(found).check_model(tiny.model(layers=6))
    control(found.check_model(tiny.model(layers=6), force=True)).check_model(tiny.model(layers=6))


@pytest.mark.parametrize("name", architectures.NAMES)
def test_models_of_different_depth_or_width_have_different_hashes(name):
    config = architectures.CONFIGS[name]()
    before = hash_of_config(config)
    assert before == hash_of_config(architectures.CONFIGS[name]())
    text = config.get_text_config(decoder=True)
    for field in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
        changed = copy.deepcopy(text)
        own = (getattr(type(text), "attribute_map", None) or {}).get(field, field)
        changed.__dict__[own] = getattr(text, own) + 2
        assert hash_of_config(changed) != hash_of_config(text), field
    changed = copy.deepcopy(config)
    changed.use_cache, changed.eos_token_id = False, 5  # what training and saving change is no other model
    assert hash_of_config(changed) == before


def test_a_model_in_parts_without_one_depth_has_a_hash_of_its_own():
    assert hash_of_config(BltConfig()) != hash_of_config(BltConfig(encoder_config={"num_hidden_layers": 3}))


def test_another_width_is_refused_whatever_is_forced(found):
    with pytest.raises(DirectionsMismatch, match="are 32 wide and the model .* is 48 wide"):
        found.check_model(tiny.model(width=48), force=True)


def test_directions_by_hand_go_by_their_width(model):
    by_hand = tp.Directions({tp.Site(0): torch.ones(32)})
    assert by_hand.check_model(model) is by_hand


def test_the_complement_has_its_limits():
    directions = tp.Directions({tp.Site(0): torch.eye(4)[:3]})
    assert directions.orthogonal_complement(0, k=1).vectors[tp.Site(0)].abs().tolist()[0] == pytest.approx(
        [0, 0, 0, 1], abs=1e-6
    )
    with pytest.raises(DirectionsError, match="the complement at resid_post.0 has 1 dimensions, found k=3"):
        directions.orthogonal_complement(0)


def test_a_local_folder_does_not_leave_its_path(found, model, tokenizer, tmp_path):
    model.config._name_or_path = str(tmp_path / "my-model")
    about = tp.find_directions(model, tokenizer, CONTRAST, sites=[tp.Site(1)]).provenance
    assert about["model"]["name"] == "my-model"
    assert str(tmp_path) not in json.dumps(about)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not list a process's memory maps")
def test_what_was_loaded_holds_no_map_of_its_file(tmp_path):
    """Windows lets nobody replace a file that is mapped, and a loaded artefact is often saved under its own name."""
    from safetensors import safe_open

    from tropism.adapters.read import read_adapter

    file = tmp_path / "d.safetensors"
    site = tp.Site(1)
    tp.Directions({site: torch.ones(3, 4096)}, covariance={site: torch.ones(8, 4096)}).save(file)
    u = tmp_path / "u.safetensors"
    tp.ParameterDirections.of_factors({"proj": (torch.ones(4096, 1), torch.ones(1, 4096))}).save(u)
    adapter_kinds.save(adapter_kinds.make("lora"), tmp_path / "adapter")
    held = [tp.Directions.load(file), tp.ParameterDirections.load(u), read_adapter(tmp_path / "adapter")]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    with safe_open(file, framework="pt") as opened:
        held.append(opened.get_tensor(f"covariance/{site}"))  # as safetensors gives it
    assert str(file) in Path("/proc/self/maps").read_text(encoding="utf-8")
