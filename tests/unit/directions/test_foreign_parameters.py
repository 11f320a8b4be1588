"""`{name: tensor}` of LoRA factors, as the refusal study saves its directions in weight space."""

import pytest
import torch

import tiny
import tropism as tp
from tropism.directions.foreign_parameters import read_parameter_directions
from tropism.errors import DirectionsError

A, B = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), torch.randn(4, 2)
NAME = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.default.weight"


def saved(path, tensors):
    torch.save(tensors, path)
    return path


def as_published(peft_model):
    """The study's own way: each tensor by its length, under both names."""
    directions = {}
    for name, tensor in peft_model.state_dict().items():
        if "lora_" in name and tensor.norm() > 1e-8:
            directions[name] = directions[name.removeprefix("base_model.model.")] = tensor / tensor.norm()
    return directions


@pytest.fixture
def trained():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name and "layers.0" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_the_study_s_own_file_gives_its_factors(tmp_path, trained):
    published = as_published(trained)
    u = read_parameter_directions(saved(tmp_path / "refusal_param_directions.pt", published))
    assert set(u.weights) == {
        name.split(".lora_B")[0] for name in published if "lora_B" in name and "base_model" not in name
    }
    for weight in u.weights:
        f = u.factors[weight]
        torch.testing.assert_close(f.A, published[f"{weight}.lora_A.default.weight"].detach())
        torch.testing.assert_close(f.B, published[f"{weight}.lora_B.default.weight"].detach())
    assert u.k == 1
    assert u.provenance["untouched_weights"], "blocks whose B is zero are named"


def test_it_constrains_an_adapter_in_the_space_of_the_factors(tmp_path, trained):
    u = read_parameter_directions(saved(tmp_path / "a.pt", as_published(trained)))
    optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.1)
    before = {name: p.detach().clone() for name, p in trained.named_parameters() if "lora_" in name}
    ids = torch.randint(5, 50, (2, 8))
    with tp.UpdateConstraint(u, space="parameter").attach(trained, optimizer=optimizer):
        trained(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    moved = {name: p.detach() - before[name] for name, p in trained.named_parameters() if "lora_" in name}
    for weight in u.weights:
        along = sum((moved[f"base_model.model.{weight}.lora_{side}.default.weight"] * getattr(u.factors[weight], side)).sum()
                    for side in "AB")  # fmt: skip
        assert abs(along) < 1e-5
    assert max(change.abs().max() for change in moved.values()) > 1e-4


def test_our_own_file_is_read_as_ever(tmp_path):
    u = tp.ParameterDirections.of_factors({"proj": (B, A)})
    assert read_parameter_directions(u.save(tmp_path / "u.safetensors")).weights == ("proj",)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": A}, "holds no LoRA factors by name"),
        ({3: A}, "holds no LoRA factors by name"),
        ([A], "holds no LoRA factors by name"),
        ({NAME.format("A"): A, "x": B}, "'x' is no LoRA factor"),
        ({NAME.format("A"): A[0]}, "is no LoRA factor"),
        ({NAME.format("B"): B}, "has lora_B and no lora_A"),
        ({NAME.format("A"): A, NAME.format("B"): B[:, :1]}, "are of ranks 2 and 1"),
        (
            {NAME.format("A"): A, NAME.format("A").replace("base_model.model.", ""): 2 * A},
            "two different tensors are given",
        ),
        (
            {NAME.format("A"): A, NAME.format("B").replace("default", "other"): B},
            "holds several adapters, default, other",
        ),
        ({NAME.format("A"): A}, "must not be zero"),
    ],
)
def test_what_is_no_adapter_is_refused(tmp_path, tensors, message):
    with pytest.raises(DirectionsError, match=message):
        read_parameter_directions(saved(tmp_path / "a.pt", tensors))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DirectionsError, match="no directions file at"):
        read_parameter_directions(tmp_path / "absent.pt")
