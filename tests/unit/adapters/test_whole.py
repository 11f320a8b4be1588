"""A model whose weights were trained themselves: its values are its own, and what is read is what was saved."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from tropism.adapters.whole import is_whole, load_whole, with_own_weights
from tropism.errors import ModelError
from tropism.experiments.held_model import sharing_weights


@pytest.fixture
def folder(tmp_path):
    tiny.model(seed=4).save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


def test_what_shares_its_weights_gets_its_own_and_keeps_its_ties():
    held = tiny.model()
    before = {name: p.detach().clone() for name, p in held.named_parameters()}
    own = with_own_weights(sharing_weights(held))
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in held.named_parameters())
    assert all(p.requires_grad for p in own.parameters())
    tied = held.get_input_embeddings().weight is held.get_output_embeddings().weight
    assert (own.get_input_embeddings().weight is own.get_output_embeddings().weight) == tied


def test_what_is_read_is_what_was_saved(folder):
    assert is_whole(folder)
    read = load_whole(tiny.model(seed=0), folder)
    for (name, ours), theirs in zip(read.named_parameters(), tiny.model(seed=4).parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert not ours.requires_grad


@pytest.mark.parametrize("harm", ["missing", "unknown", "shape"])
def test_a_weight_that_is_missing_unknown_or_of_another_shape_is_refused(folder, harm):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    if harm == "missing":
        del tensors[name]
    elif harm == "unknown":
        tensors["another.weight"] = torch.ones(1)
    else:
        tensors[name] = torch.ones(3)
    save_file(tensors, file)
    with pytest.raises(
        ModelError, match="must hold the weights of this model, found 1 missing, unknown or of another shape"
    ):
        load_whole(tiny.model(), folder)
